"""Precision rules of the published model."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["at_least_float32"]


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` raised to float32 if it is bfloat16 or float16; float32 and float64 stay as they are.

    Resizing and deformable sampling happen in this precision whatever the rest of the model runs in.
    """
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
