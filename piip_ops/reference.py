"""The definition of multi-scale deformable attention, in plain PyTorch.

These functions say what the compiled operators compute, and stand in for them where the extension was not
built or the device has no kernel. Everything is computed in float32 (float64 for float64 inputs), whatever
the type of the inputs: a sampling position in bfloat16 would be off by half a pixel on a map of a hundred.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import as_integers, as_levels, check_deform_cross_attn, check_ms_deform_attn


def ms_deform_attn_reference(
    value: Tensor,
    spatial_shapes: Sequence[Sequence[int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Multi-scale deformable attention (Deformable DETR, equation 3, without its linear layers).

    Samples are bilinear with zeros outside the map; a location ``l`` lies at pixel ``l * size - 0.5``.

    Args:
        value: (B, S, heads, C), the levels' maps flattened row by row and joined: S = sum of H * W.
        spatial_shapes: (H, W) of each level.
        sampling_locations: (B, Q, heads, levels, points, 2), (x, y) with 0 and 1 at the map's outer edges.
        attention_weights: (B, Q, heads, levels, points).

    Returns:
        (B, Q, heads * C) in the dtype of ``value``.

    Raises:
        ValueError: a shape, dtype or device does not fit; the message names the argument.
    """
    shapes = as_levels(spatial_shapes)
    check_ms_deform_attn(value, shapes, sampling_locations, attention_weights)
    dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    return _sample(value.to(dtype), shapes, sampling_locations.to(dtype), attention_weights.to(dtype)).to(
        value.dtype
    )


def deform_cross_attn_reference(
    value: Tensor, offsets: Tensor, logits: Tensor, query_shape: Sequence[int], value_shape: Sequence[int]
) -> Tensor:
    """Deformable attention of a grid of queries to one value map (PIIP, section 3.2, in the interactions).

    The reference point of a query is the centre of its cell, carried over to the value map; softmax runs over
    the points.

    Args:
        value: (B, hv * wv, heads, C).
        offsets: (B, hq * wq, heads, points, 2), (x, y) in pixels of the value map.
        logits: (B, hq * wq, heads, points).
        query_shape: (hq, wq).
        value_shape: (hv, wv).

    Returns:
        (B, hq * wq, heads * C) in the dtype of ``value``.

    Raises:
        ValueError: a shape, dtype or device does not fit; the message names the argument.
    """
    query_shape = as_integers("query_shape", query_shape)
    value_shape = as_integers("value_shape", value_shape)
    check_deform_cross_attn(value, offsets, logits, query_shape, value_shape)
    dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    (query_height, query_width), (height, width) = query_shape, value_shape
    y = (torch.arange(query_height, dtype=dtype, device=value.device) + 0.5) / query_height
    x = (torch.arange(query_width, dtype=dtype, device=value.device) + 0.5) / query_width
    centres = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(-1, 1, 1, 2)  # (hq*wq, 1, 1, 2)
    x, y = offsets.to(dtype).unbind(-1)
    # sizes stay numbers: a tensor made of them would hold them fast in a traced graph
    locations = centres + torch.stack([x * (1.0 / width), y * (1.0 / height)], -1)
    weights = logits.to(dtype).softmax(-1)
    shapes = [(height, width)]
    return _sample(value.to(dtype), shapes, locations.unsqueeze(3), weights.unsqueeze(3)).to(value.dtype)


def _sample(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    batch, _, heads, channels = value.shape
    queries, levels, points = locations.shape[1], locations.shape[3], locations.shape[4]
    grids = (2 * locations - 1).permute(0, 2, 3, 1, 4, 5).flatten(0, 1)  # (B*heads, levels, Q, points, 2)
    samples = []
    start = 0
    for level, (height, width) in enumerate(shapes):
        level_map = value[:, start : start + height * width].permute(0, 2, 3, 1)
        # Points that touch no cell, NaN and infinite ones with them, go where grid_sample gives zeros.
        x, y = grids[:, level].unbind(-1)
        touches = (x.abs() <= 1 + 1 / width) & (y.abs() <= 1 + 1 / height)
        grid = torch.where(touches.unsqueeze(-1), grids[:, level], -3.0)
        samples.append(
            F.grid_sample(
                level_map.reshape(batch * heads, channels, height, width),
                grid,
                mode="bilinear",
                padding_mode="zeros",
                align_corners=False,
            )
        )  # (B*heads, C, Q, points)
        start += height * width
    mixing = weights.permute(0, 2, 1, 3, 4).reshape(batch * heads, 1, queries, levels * points)
    mixed = (torch.cat(samples, -1) * mixing).sum(-1)  # (B*heads, C, Q)
    return mixed.view(batch, heads * channels, queries).transpose(1, 2).contiguous()
