"""Precision rules of the published model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["at_least_float32", "autocast", "autocast_only", "dtype_of", "without_autocast"]

_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` raised to float32 if it is bfloat16 or float16; float32 and float64 stay as they are.

    Resizing and deformable sampling happen in this precision whatever the rest of the model runs in.
    """
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context that leaves autocast. Meta tensors, on which costs are counted, have no autocast to leave."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def dtype_of(precision: str) -> torch.dtype:
    """The type for a precision named as in the configs.

    Raises:
        ValueError: unknown precision.
    """
    if precision not in _PRECISIONS:
        raise ValueError(f"precision '{precision}' is not supported: use one of {', '.join(_PRECISIONS)}")
    return _PRECISIONS[precision]


def autocast(device: str | torch.device, precision: str) -> torch.autocast:
    """The context to run a model in for a precision named as in the configs.

    Raises:
        ValueError: unknown precision.
    """
    is_half = dtype_of(precision) != torch.float32
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=is_half)


@contextmanager
def autocast_only(module: nn.Module, device: str | torch.device, precision: str) -> Iterator[None]:
    """Within, a part of a model runs in a precision named as in the configs, the others without autocast.

    Args:
        module: the part, which returns maps by name. They leave it in float32.
        device: of the model.
        precision: of the part.

    Raises:
        ValueError: unknown precision.
    """
    inside = ExitStack()

    def enter(*_: Any) -> None:
        inside.enter_context(autocast(device, precision))

    def leave(_: nn.Module, __: Any, maps: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
        inside.close()
        return None if maps is None else {name: at_least_float32(x) for name, x in maps.items()}

    hooks = (
        module.register_forward_pre_hook(enter),
        module.register_forward_hook(leave, always_call=True),  # after an error, too
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
