"""Precision rules of the published model."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

__all__ = ["at_least_float32", "autocast", "dtype_of", "without_autocast"]

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
