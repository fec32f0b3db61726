"""Padding masks, sine position codes of cells and boxes, and the share of a map that is image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["box_code", "level_masks", "place_code", "valid_ratios"]

Size = tuple[int, int]


def level_masks(image_sizes: Sequence[Size], padded_size: Size, maps: Sequence[Tensor]) -> list[Tensor]:
    """Which cells of each map ``(B, C, h, w)`` are padding, ``(B, h, w)``, by nearest neighbour."""
    mask = torch.ones(len(image_sizes), *padded_size, device=maps[0].device)
    for index, (height, width) in enumerate(image_sizes):
        mask[index, :height, :width] = 0
    return [F.interpolate(mask[None], size=x.shape[2:])[0].bool() for x in maps]


def valid_ratios(masks: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Share of each map that is image, along (x, y), ``(B, levels, 2)``, read off first row and column."""
    shares = [
        torch.stack([(~mask[:, 0]).to(dtype).mean(1), (~mask[:, :, 0]).to(dtype).mean(1)], dim=-1)
        for mask in masks
    ]
    return torch.stack(shares, dim=1)


def _code(angles: Tensor, channels: int, temperature: float) -> Tensor:
    """Sine and cosine by turns: ``(...)`` -> ``(..., channels)``."""
    exponent = torch.arange(channels, dtype=angles.dtype, device=angles.device).div(2).floor() * 2 / channels
    phase = angles[..., None] / temperature**exponent
    return torch.stack([phase[..., 0::2].sin(), phase[..., 1::2].cos()], dim=-1).flatten(-2)


def place_code(mask: Tensor, channels: int, dtype: torch.dtype, temperature: float = 20.0) -> Tensor:
    """Code of each cell of a map ``(B, h, w)`` of padding, ``(B, h, w, channels)``, first of y, then of x.

    Cells are numbered among those that are image, from 1, and the numbers scaled to 2 pi at the last.
    """
    valid = (~mask).to(dtype)
    y, x = valid.cumsum(1), valid.cumsum(2)
    y = y / (y[:, -1:] + 1e-6) * 2 * math.pi
    x = x / (x[:, :, -1:] + 1e-6) * 2 * math.pi
    return torch.cat([_code(axis, channels // 2, temperature) for axis in (y, x)], dim=-1)


def box_code(boxes: Tensor, channels: int, temperature: float = 10000.0) -> Tensor:
    """Code of boxes ``(..., 4)`` (cx, cy, w, h), ``(..., 4 * channels)`` in the order (y, x, w, h)."""
    angles = boxes[..., [1, 0, 2, 3]] * 2 * math.pi
    return _code(angles, channels, temperature).flatten(-2)
