"""What a layer of the encoder and one of the decoder are both made of."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from .attention import MultiScaleDeformableAttention

__all__ = ["LayerSizes"]


class LayerSizes(NamedTuple):
    """Sizes of all layers, and the modules that they give.

    Attributes:
        dim: channels of queries and maps.
        hidden_dim: of the feed-forward networks.
        num_heads, num_levels, num_points: of deformable attention; points are per head and level.
    """

    dim: int
    hidden_dim: int
    num_heads: int
    num_levels: int
    num_points: int

    def deformable_attention(self) -> MultiScaleDeformableAttention:
        """From queries to all levels."""
        return MultiScaleDeformableAttention(self.dim, self.num_heads, self.num_levels, self.num_points)

    def feed_forward(self) -> nn.Sequential:
        """Linear, ReLU, linear, Xavier-initialised."""
        first, last = nn.Linear(self.dim, self.hidden_dim), nn.Linear(self.hidden_dim, self.dim)
        for layer in (first, last):
            nn.init.xavier_uniform_(layer.weight)
        return nn.Sequential(first, nn.ReLU(), last)

    def norms(self, number: int) -> nn.ModuleList:
        """One for each step of a layer."""
        return nn.ModuleList(nn.LayerNorm(self.dim) for _ in range(number))
