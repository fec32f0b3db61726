"""A moving average of the weights, which often evaluates better than they do themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.engine.train_loop import HookBase
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

__all__ = ["AverageWeights", "EMAUpdate"]


class _Copies(nn.Module):
    """Copies of a state dict's tensors, in its order; sharded ones stay sharded."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in state.items():
            copy = nn.Parameter(tensor.detach().clone(), requires_grad=False)
            self.register_parameter(name.replace(".", "/"), copy)  # a dot would name a submodule


class AverageWeights:
    """timm's `ModelEmaV3` over the state dict of a model that may be compiled or sharded.

    It holds tensors, not a second model: for evaluation they change places with the model's, :meth:`swapped`.

    Attributes:
        loaded: whether it goes on from an average that :meth:`load_state_dict` was given.
    """

    def __init__(self, model: nn.Module, *, decay: float, warmup: bool = False, **options: Any) -> None:
        """
        Args:
            model: whose weights and buffers to average: not wrapped for data parallelism.
            decay, warmup: see `ema_decay` and `ema_warmup` in `piip.engine.settings`.
            options: further ones of `ModelEmaV3`.
        """
        self.model = model
        state = model.state_dict()
        whole = not any(isinstance(tensor, DTensor) for tensor in state.values())  # else kinds are mixed
        options = {"foreach": whole, **options}
        self.ema = ModelEmaV3(_Copies(state), decay=decay, use_warmup=warmup, **options)
        self.loaded = False

    def update(self, iteration: int) -> None:
        """Update with the weights after an iteration, counted from 0. The first update copies them."""
        self.ema.update(self.model, step=iteration + 1)

    def restart(self) -> None:
        """Copy the weights that the model has now."""
        self.ema.set(self.model)

    @contextmanager
    @torch.no_grad()
    def swapped(self) -> Iterator[None]:
        """Within the context the model has the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for average, raw in zip(self.state_dict().values(), self.model.state_dict().values(), strict=True):
            kept = raw.clone()
            raw.copy_(average)
            average.copy_(kept)

    def state_dict(self) -> dict[str, Tensor]:
        """The average under the model's names."""
        return {name.replace("/", "."): tensor for name, tensor in self.ema.module.state_dict().items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from an average that :meth:`state_dict` returned."""
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])
        self.loaded = True


class EMAUpdate(HookBase):
    """Updates an average after each step."""

    def __init__(self, average: AverageWeights) -> None:
        self.average = average

    def after_step(self) -> None:
        self.average.update(self.trainer.iter)
