"""One iteration of training: the step, its precision, its random numbers."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import torch
from detectron2.engine.train_loop import SimpleTrainer
from detectron2.utils import comm
from torch import nn

from ..numerics import autocast
from ..seeding import mix_seed, seed_all

__all__ = ["Trainer"]


class Trainer(SimpleTrainer):
    """Detectron2's `SimpleTrainer` on any device and in bfloat16, with steps that repeat bit for bit.

    What a step draws at random (drop path, sampling of anchors and proposals) depends on (seed, rank,
    iteration) only, so nothing but the seed has to be kept in checkpoints, and evaluation between steps
    changes nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Any],
        optimizer: torch.optim.Optimizer,
        *,
        seed: int,
        precision: str = "float32",
    ) -> None:
        """
        Args:
            model: takes a batch, returns a dict of losses (0-dim tensors).
            data_loader: endless batches.
            optimizer: of the model's parameters.
            seed: of this run, in [0, 2**32); the same on all ranks. `load_state_dict` replaces it.
            precision: "float32" or "bfloat16".
        """
        super().__init__(model, data_loader, optimizer)
        self.seed, self.precision = seed, precision
        self.device = next(model.parameters()).device

    def run_step(self) -> None:
        """One iteration.

        Raises:
            FloatingPointError: a loss is infinite or NaN; the weights are as the last step left them.
        """
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        seed_all(mix_seed(self.seed, comm.get_rank(), self.iter))
        try:
            with autocast(self.device, self.precision):
                losses: dict[str, torch.Tensor] = self.model(batch)
        except FloatingPointError as error:  # Detectron2's proposals notice before there is a loss
            raise self._diverged(str(error).rstrip(".")) from error
        total = torch.stack([loss.float() for loss in losses.values()]).sum()
        if not torch.isfinite(total):
            values = ", ".join(f"{name} {loss.item():g}" for name, loss in losses.items())
            raise self._diverged(f"loss is not finite, {values}")
        self.optimizer.zero_grad()
        total.backward()
        self.after_backward()
        self._write_metrics(losses, data_time)
        self.optimizer.step()

    def _diverged(self, reason: str) -> FloatingPointError:
        return FloatingPointError(
            f"training diverged at iteration {self.iter} ({reason}): it stops, checkpoints stay as they are; "
            "lower optimizer.lr or look at the data"
        )

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = super().state_dict()
        return {**state, "seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.seed = state_dict["seed"]
