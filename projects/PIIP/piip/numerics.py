"""Precision rules of the published model."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

__all__ = ["at_least_float32", "without_autocast"]


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` raised to float32 if it is bfloat16 or float16; float32 and float64 stay as they are.

    Resizing and deformable sampling happen in this precision whatever the rest of the model runs in.
    """
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context that leaves autocast. Meta tensors, on which costs are counted, have no autocast to leave."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
