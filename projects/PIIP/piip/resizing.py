"""Bicubic resizing of tables with many channels, such as position embeddings."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .numerics import at_least_float32

__all__ = ["resize_bicubic"]


def resize_bicubic(table: Tensor, height: int, width: int) -> Tensor:
    """Resize a table as published models do: plain bicubic, no antialiasing, in at least float32.

    Args:
        table: ``(1, h, w, C)``.
        height, width: wanted.

    Returns:
        ``(1, height, width, C)`` in the table's type.
    """
    wide = at_least_float32(table)
    # on a GPU PyTorch's kernel has a thread for each place, which goes through the channels one by one
    resized = _by_sides(wide, height, width) if table.is_cuda else _at_once(wide, height, width)
    return resized.to(table.dtype)


def _at_once(table: Tensor, height: int, width: int) -> Tensor:
    image = table.permute(0, 3, 1, 2)  # (1, C, h, w)
    resized = F.interpolate(image, size=(height, width), mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1)


def _by_sides(table: Tensor, height: int, width: int) -> Tensor:
    """The same in two steps, first along the width, with channels along a side of the image.

    A side that keeps its size is sampled where it lies, with weights 0, 1, 0, 0.
    """
    _, rows, columns, channels = table.shape

    def resize(image: Tensor, *size: int) -> Tensor:
        return F.interpolate(image[None, None], size=size, mode="bicubic", align_corners=False)[0, 0]

    across = table[0].transpose(1, 2).reshape(rows * channels, columns)  # (h, C) by w
    across = resize(across, rows * channels, width).reshape(rows, channels * width)  # h by (C, width)
    both = resize(across, height, channels * width).reshape(1, height, channels, width)
    return both.transpose(2, 3)
