"""The encoder: every cell of every level attends to a few points of all levels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .layers import LayerSizes

__all__ = ["Encoder", "cell_centres"]


def cell_centres(shapes: Sequence[tuple[int, int]], ratios: Tensor) -> Tensor:
    """Centres (x, y) of all cells as fractions of the image part of their map, ``(B, S, 2)``.

    Args:
        shapes: (h, w) of each map.
        ratios: share of each map that is image, ``(B, levels, 2)``.
    """
    points = []
    for level, (height, width) in enumerate(shapes):
        size = torch.tensor([width, height], dtype=ratios.dtype, device=ratios.device)
        ys = torch.arange(height, dtype=ratios.dtype, device=ratios.device) + 0.5
        xs = torch.arange(width, dtype=ratios.dtype, device=ratios.device) + 0.5
        grid = torch.stack(torch.meshgrid(ys, xs, indexing="ij")[::-1], dim=-1).view(-1, 2)  # (h * w, 2)
        points.append(grid / (ratios[:, level, None] * size))
    return torch.cat(points, dim=1)


class EncoderLayer(nn.Module):
    """Deformable self-attention and a feed-forward network, each followed by a norm."""

    def __init__(self, sizes: LayerSizes) -> None:
        super().__init__()
        self.attention = sizes.deformable_attention()
        self.ffn = sizes.feed_forward()
        self.norms = sizes.norms(2)

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        references: Tensor,
        shapes: Sequence[tuple[int, int]],
        padding: Tensor,
    ) -> Tensor:
        x = self.norms[0](x + self.attention(x + position, references, x, shapes, padding))
        return self.norms[1](x + self.ffn(x))


class Encoder(nn.Module):
    """A stack of layers, without a norm at the end."""

    def __init__(self, num_layers: int, sizes: LayerSizes) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(sizes) for _ in range(num_layers))

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        shapes: Sequence[tuple[int, int]],
        ratios: Tensor,
        padding: Tensor,
    ) -> Tensor:
        """Update all cells.

        Args:
            x: cells of all levels, ``(B, S, dim)``.
            position: their code, ``(B, S, dim)``, added to queries anew in each layer, not to values.
            shapes: (h, w) of each level.
            ratios: share of each level that is image, ``(B, levels, 2)``.
            padding: which cells are not, ``(B, S)``.
        """
        references = cell_centres(shapes, ratios)[:, :, None] * ratios[:, None]  # (B, S, levels, 2)
        for layer in self.layers:
            x = layer(x, position, references, shapes, padding)
        return x
