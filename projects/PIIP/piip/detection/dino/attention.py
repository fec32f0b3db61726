"""Multi-scale deformable attention (Deformable DETR, equation 3) with its linear layers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from piip_ops import ms_deform_attn

__all__ = ["MultiScaleDeformableAttention"]


class MultiScaleDeformableAttention(nn.Module):
    """Attention of queries to a few points of several maps.

    Args:
        dim: channels of queries and maps.
        num_heads, num_levels, num_points: points are per head and level.
    """

    def __init__(self, dim: int, num_heads: int, num_levels: int, num_points: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"{dim} channels cannot be split into {num_heads} heads: choose a divisor")
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        samples = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(dim, samples * 2)
        self.attention_weights = nn.Linear(dim, samples)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise: points on one ray per head, at distances 1, 2, ...; equal weights."""
        angles = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        rays = torch.stack([angles.cos(), angles.sin()], dim=-1)
        rays = rays / rays.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.num_points + 1)
        offsets = (rays[:, None, None] * steps[:, None]).expand(-1, self.num_levels, -1, -1)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.flatten())
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        query: Tensor,
        references: Tensor,
        memory: Tensor,
        shapes: Sequence[tuple[int, int]],
        padding: Tensor,
    ) -> Tensor:
        """Sample the maps around references.

        Args:
            query: ``(B, Q, dim)``, positions added.
            references: points ``(B, Q, levels, 2)``, whose offsets are in cells, or boxes (cx, cy, w, h)
                ``(B, Q, levels, 4)``, whose offsets are in their halves; fractions of the maps.
            memory: the maps flattened and joined, ``(B, S, dim)``.
            shapes: (h, w) of each map.
            padding: where memory is padding, ``(B, S)``: its values are zero.

        Returns:
            ``(B, Q, dim)``.
        """
        batch, queries, _ = query.shape
        layout = (batch, queries, self.num_heads, self.num_levels, self.num_points)
        value = self.value_proj(memory).masked_fill(padding[..., None], 0)
        value = value.unflatten(-1, (self.num_heads, -1))  # (B, S, heads, dim / heads)
        offsets = self.sampling_offsets(query).view(*layout, 2)
        weights = self.attention_weights(query).view(*layout[:3], -1).softmax(-1).view(layout)
        anchors = references[:, :, None, :, None]  # (B, Q, 1, levels, 1, 2 or 4)
        if references.shape[-1] == 2:
            scale = torch.tensor(
                [(width, height) for height, width in shapes], dtype=query.dtype, device=query.device
            )
            places = anchors + offsets / scale[:, None]
        else:
            places = anchors[..., :2] + offsets / self.num_points * anchors[..., 2:] * 0.5
        return self.output_proj(
            ms_deform_attn(value, shapes, places.to(value.dtype), weights.to(value.dtype))
        )
