"""One iteration of training: the step, its precision, its random numbers."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from detectron2.engine.train_loop import SimpleTrainer
from detectron2.utils import comm
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from ..numerics import autocast, autocast_only
from ..seeding import mix_seed, seed_all
from .data.workers import DataError, reason_of
from .distributed.collectives import any_rank
from .nonfinite import NonfiniteGuard

__all__ = ["Trainer"]


class Trainer(SimpleTrainer):
    """Detectron2's `SimpleTrainer` on any device and in bfloat16, with steps that repeat bit for bit.

    What a step draws at random (drop path, sampling of anchors and proposals) depends on (seed, rank,
    iteration) only, so nothing but the seed has to be kept in checkpoints, and evaluation between steps
    changes nothing.

    Attributes:
        completed: the last iteration whose step is done, -1 before the first of this process.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Any],
        optimizer: torch.optim.Optimizer,
        *,
        seed: int,
        precision: str = "float32",
        float32_heads: bool = False,
        accumulate: int = 1,
        clip_grad_norm: float = 0.0,
        guard: NonfiniteGuard | None = None,
    ) -> None:
        """
        Args:
            model: takes a batch, returns a dict of losses (0-dim tensors).
            data_loader: endless batches.
            optimizer: of the model's parameters.
            seed: of this run, in [0, 2**32); the same on all ranks. `load_state_dict` replaces it.
            precision: "float32" or "bfloat16".
            float32_heads: that precision is for the model's backbone, without its neck, only.
            accumulate: micro-batches per step; a batch is a list then, see :meth:`run_step`.
            clip_grad_norm: maximum gradient norm; 0 disables clipping.
            guard: what to do when a loss is not finite; by default training stops.
        """
        super().__init__(model, data_loader, optimizer)
        self.seed, self.precision = seed, precision
        self.float32_heads = float32_heads
        self.accumulate, self.clip_grad_norm = accumulate, clip_grad_norm
        self.guard = guard or NonfiniteGuard()
        self.completed = -1
        self.device = next(model.parameters()).device
        groups = optimizer.param_groups
        self._settings = [{k: value for k, value in group.items() if k != "params"} for group in groups]

    def run_step(self) -> None:
        """One iteration.

        With `accumulate`, each loss is weighted by its micro-batch's share of the images. The gradient is
        that of the whole batch where a loss is a mean over images. A loss that is a mean over something else,
        such as foreground boxes, is averaged per micro-batch.

        Raises:
            DataError: there is no batch; the weights are as the last step left them.
            FloatingPointError: a loss is infinite or NaN, once more than is tolerated; the weights likewise.
        """
        start = time.perf_counter()
        batch = self._next_batch()
        data_time = time.perf_counter() - start
        seed_all(mix_seed(self.seed, comm.get_rank(), self.iter))
        self.optimizer.zero_grad()
        losses: dict[str, torch.Tensor] = {}
        micro_batches = list(self._micro_batches(batch))
        for number, (micro_batch, share) in enumerate(micro_batches, start=1):
            # FSDP reduces after each: to delay that, it would have to keep the gradients of the whole model
            waits = number < len(micro_batches) and isinstance(self.model, DistributedDataParallel)
            with self.model.no_sync() if waits else nullcontext():
                weighted = self._backward(micro_batch, share)
            if weighted is None:
                self.optimizer.zero_grad()
                self.completed = self.iter
                return
            for name, loss in weighted.items():
                losses[name] = losses[name] + loss if name in losses else loss
        self.after_backward()
        if self.clip_grad_norm:
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad_norm)
            self.storage.put_scalar("grad_norm", norm.full_tensor() if isinstance(norm, DTensor) else norm)
        self._write_metrics(losses, data_time)
        self.optimizer.step()
        self.completed = self.iter

    def after_train(self) -> None:
        """Run the hooks, and stop loading: threads and workers end with the loader's iterator."""
        try:
            super().after_train()
        finally:
            self._data_loader_iter_obj = None

    def _micro_batches(self, batch: Any) -> Iterator[tuple[Any, float]]:
        """`accumulate` micro-batches of almost equal size, each with its share of the images."""
        if self.accumulate == 1:
            yield batch, 1.0
            return
        if len(batch) < self.accumulate:
            raise ValueError(
                f"train.accumulate={self.accumulate} splits batches of {len(batch)} images per process: use "
                "at most as many micro-batches, or a larger dataloader.train.total_batch_size"
            )
        ends = [len(batch) * number // self.accumulate for number in range(self.accumulate + 1)]
        for first, end in itertools.pairwise(ends):
            yield batch[first:end], (end - first) / len(batch)

    def _backward(self, batch: Any, share: float) -> dict[str, torch.Tensor] | None:
        """Add the gradient of a micro-batch. Returns its losses, weighted; None to skip the step."""
        losses: dict[str, torch.Tensor] = {}
        problem = ""
        try:
            losses = self._forward(batch)
        except FloatingPointError as error:  # Detectron2's proposals notice before there is a loss
            problem = str(error).rstrip(".")
        total = torch.stack([loss.float() for loss in losses.values()]).sum() if losses else None
        if total is not None and not torch.isfinite(total):
            values = ", ".join(f"{name} {loss.item():g}" for name, loss in losses.items())
            problem = f"loss is not finite, {values}"
        if self.guard.should_skip_step(
            self.iter,
            problem,
            model=self.model,
            losses=losses,
            batch=batch,
            forward=lambda: self._forward_again(batch),
        ):
            return None
        assert total is not None
        (total * share).backward()
        return {name: loss.detach() * share for name, loss in losses.items()}

    def _next_batch(self) -> Any:
        """The batch of this iteration.

        Raises:
            DataError: this process has none, or another has none.
        """
        batch, failure = None, None
        try:
            batch = next(self._data_loader_iter)
        except Exception as error:  # noqa: BLE001 - raised below, once all processes know
            failure = error
        if not any_rank(failure is not None):
            return batch
        if isinstance(failure, DataError):
            raise failure
        reason = reason_of(failure) if failure else "in another process"
        raise DataError(f"no batch for iteration {self.iter}, {reason}") from failure

    def _forward(self, batch: Any) -> dict[str, torch.Tensor]:
        with (
            autocast_only(_without_neck(self.model), self.device, self.precision)
            if self.float32_heads
            else autocast(self.device, self.precision)
        ):
            losses: dict[str, torch.Tensor] = self.model(batch)
        return losses

    def _forward_again(self, batch: Any) -> dict[str, torch.Tensor]:
        """With the random numbers of this iteration from their beginning."""
        seed_all(mix_seed(self.seed, comm.get_rank(), self.iter))
        return self._forward(batch)

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = super().state_dict()
        return {**state, "seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state; the optimizer's settings, such as learning rates, stay the config's.

        Raises:
            ValueError: the optimizer of the state has other groups of parameters.
        """
        try:
            super().load_state_dict(state_dict)
        except ValueError as error:  # of PyTorch
            raise ValueError(
                f"the checkpoint's optimizer does not fit ({error}): resume with the optimizer it was "
                "trained with, or start a new run from its weights, with train.init_checkpoint"
            ) from error
        for group, settings in zip(self.optimizer.param_groups, self._settings, strict=True):
            group.update(
                {"initial_lr": settings["lr"], **settings}
            )  # from which the schedule computes the next
        self.seed = state_dict["seed"]


def _without_neck(model: nn.Module) -> nn.Module:
    """The backbone of a detector or segmentor, without the neck it may have."""
    backbone: Any = (model.module if isinstance(model, DistributedDataParallel) else model).backbone
    without: nn.Module = getattr(backbone, "bottom_up", backbone)
    return without
