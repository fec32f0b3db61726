"""Decompositions of this package's operators into standard ones, for files that must run without it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from piip_ops import deform_cross_attn_reference, ms_deform_attn_reference

__all__ = ["standard_operators"]


def _ms_deform_attn(
    value: Tensor, spatial_shapes: Sequence[int], locations: Tensor, weights: Tensor
) -> Tensor:
    shapes = list(zip(spatial_shapes[::2], spatial_shapes[1::2], strict=True))
    return ms_deform_attn_reference(value, shapes, locations, weights)


def _adaptive_avg_pool2d(x: Tensor, output_size: Sequence[int]) -> Tensor:
    """Means over a grid of cells, as two matrix products: ONNX has no such pooling for sizes not known."""
    rows, columns = (
        _cell_means(length, int(cells), x) for length, cells in zip(x.shape[2:], output_size, strict=True)
    )
    return rows @ x @ columns.transpose(0, 1)


def _cell_means(length: int, cells: int, like: Tensor) -> Tensor:
    """Weights ``(cells, length)``; cell i is [floor(i * length / cells), ceil((i + 1) * length / cells))."""
    cell = torch.arange(cells, device=like.device)[:, None]
    place = torch.arange(length, device=like.device)
    start, end = cell * length // cells, ((cell + 1) * length + cells - 1) // cells
    inside = ((place >= start) & (place < end)).to(like.dtype)
    return inside / inside.sum(dim=1, keepdim=True)


def standard_operators() -> dict[Any, Callable[..., Tensor]]:
    """Decompositions for `ExportedProgram.run_decompositions`: operator -> the same in standard ones."""
    table: dict[Any, Callable[..., Tensor]] = {
        torch.ops.aten.adaptive_avg_pool2d.default: _adaptive_avg_pool2d
    }
    if hasattr(torch.ops.piip_ops, "deform_cross_attn"):  # the operators were built; else nothing calls them
        table[torch.ops.piip_ops.deform_cross_attn.default] = deform_cross_attn_reference
        table[torch.ops.piip_ops.ms_deform_attn.default] = _ms_deform_attn
    return table
