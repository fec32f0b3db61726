"""Cross-attention between the token maps of two branches."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from piip_ops import deform_cross_attn

from .numerics import at_least_float32, without_autocast

__all__ = ["AttentionPrecision", "DeformableCrossAttention", "RegularCrossAttention"]

AttentionPrecision = Literal["float32", "autocast"]
"""See :class:`piip.interaction.InteractionConfig`."""


class DeformableCrossAttention(nn.Module):
    """Single-level deformable attention from one token map to another (Deformable DETR, eq. 2).

    Every query looks at ``num_points`` points of the other map around its own place in the image. Sampling
    is placed in at least float32, whatever the autocast.

    Args:
        dim: channels of the queries and of the output.
        feat_dim: channels of the map that is looked at.
        num_heads: heads; ``int(dim * ratio)`` must be a multiple of it.
        num_points: sampling points of a head and query.
        ratio: width of the values as a fraction of ``dim``.
        float32_projections: run the linear layers in at least float32 too, as published detectors do.
        precision: "float32" samples values of at least that type, as released. "autocast" has projections and
            values in autocast's type, and offsets and attention logits in float32, whatever
            `float32_projections`: half precision would place samples to within 1/32 of a pixel at best.
    """

    def __init__(
        self,
        dim: int,
        feat_dim: int,
        *,
        num_heads: int = 16,
        num_points: int = 4,
        ratio: float = 0.5,
        float32_projections: bool = True,
        precision: AttentionPrecision = "float32",
    ) -> None:
        super().__init__()
        value_dim = int(dim * ratio)
        if value_dim % num_heads or not value_dim:
            raise ValueError(
                f"deformable attention on {dim} channels with ratio {ratio} has {value_dim} value channels, "
                f"which {num_heads} heads cannot share: choose a divisor of {value_dim}"
            )
        self.num_heads = num_heads
        self.num_points = num_points
        self.float32_projections = float32_projections
        self.precision = precision
        self.value_proj = nn.Linear(feat_dim, value_dim)
        self.sampling_offsets = nn.Linear(dim, num_heads * num_points * 2)
        self.attention_weights = nn.Linear(dim, num_heads * num_points)
        self.output_proj = nn.Linear(value_dim, dim)

    def reset_parameters(self) -> None:
        """Start with every head looking in a direction of its own, its points 1, 2, ... pixels away."""
        angles = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], -1)  # (heads, 2), as (x, y)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        distances = torch.arange(1, self.num_points + 1).view(1, -1, 1)
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_((directions[:, None] * distances).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, query: Tensor, feat: Tensor) -> Tensor:
        """Look from the map ``query`` ``(B, hq, wq, dim)`` at ``feat`` ``(B, hf, wf, feat_dim)``."""
        if self.precision == "autocast":
            value = _linear(self.value_proj, feat)
            with without_autocast(query.device):
                wide = at_least_float32(query)
                seen = self._sample(
                    value, _linear(self.sampling_offsets, wide), _linear(self.attention_weights, wide), query
                )
            return _linear(self.output_proj, seen).to(query.dtype)
        if not self.float32_projections:
            return self._attend(query, feat).to(query.dtype)
        with without_autocast(query.device):
            return self._attend(at_least_float32(query), at_least_float32(feat)).to(query.dtype)

    def _attend(self, query: Tensor, feat: Tensor) -> Tensor:
        value = _linear(self.value_proj, feat)
        offsets = _linear(self.sampling_offsets, query)
        logits = _linear(self.attention_weights, query)
        with without_autocast(query.device):
            wide_value, wide_offsets = at_least_float32(value), at_least_float32(offsets)
            seen = self._sample(wide_value, wide_offsets, at_least_float32(logits), query)
        return _linear(self.output_proj, seen.to(value.dtype))

    def _sample(self, value: Tensor, offsets: Tensor, logits: Tensor, query: Tensor) -> Tensor:
        """What each query sees of the values, ``(B, hq, wq, value_dim)``; maps ``(B, h, w, ...)``."""
        batch, *query_shape, _ = query.shape
        seen = deform_cross_attn(
            value.reshape(batch, -1, self.num_heads, value.shape[-1] // self.num_heads),
            offsets.reshape(batch, -1, self.num_heads, self.num_points, 2),
            logits.reshape(batch, -1, self.num_heads, self.num_points),
            tuple(query_shape),
            tuple(value.shape[1:3]),
        )
        return seen.reshape(batch, *query_shape, -1)


class RegularCrossAttention(nn.Module):
    """Dense cross-attention from one token map to another (the published ``interact_attn_type='normal'``).

    Args:
        dim: channels of the queries and of the output, a multiple of ``num_heads``.
        feat_dim: channels of the map that is looked at.
        num_heads: heads.
    """

    def __init__(self, dim: int, feat_dim: int, *, num_heads: int = 16) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(
                f"{dim} channels cannot be split into {num_heads} heads: choose a divisor of {dim}"
            )
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.k_proj = nn.Linear(feat_dim, dim, bias=False)
        self.v_proj = nn.Linear(feat_dim, dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, query: Tensor, feat: Tensor) -> Tensor:
        """Look from the map ``query`` ``(B, hq, wq, dim)`` at ``feat`` ``(B, hf, wf, feat_dim)``."""
        q, k, v = (
            t.flatten(1, 2)
            .unflatten(2, (self.num_heads, -1))
            .transpose(1, 2)  # (B, heads, tokens, dim/heads)
            for t in (self.q_proj(query), self.k_proj(feat), self.v_proj(feat))
        )
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.proj(out.reshape(query.shape))


def _linear(layer: nn.Module, x: Tensor) -> Tensor:
    """``layer`` in the precision of ``x``, also where the weights themselves are kept in half precision.

    Under autocast the layer chooses its own.
    """
    chooses = x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)
    if chooses or not isinstance(layer, nn.Linear) or layer.weight.dtype == x.dtype:
        return layer(x)
    return F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))
