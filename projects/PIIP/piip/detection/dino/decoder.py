"""The decoder: queries attend to one another and to the image; their boxes are refined layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .boxes import inverse_sigmoid
from .layers import LayerSizes
from .positions import box_code

__all__ = ["Decoder"]


class DecoderLayer(nn.Module):
    """Self-attention among queries, deformable attention to the image, feed-forward, each with a norm."""

    def __init__(self, sizes: LayerSizes) -> None:
        super().__init__()
        self.self_attention = nn.MultiheadAttention(sizes.dim, sizes.num_heads, batch_first=True)
        self.cross_attention = sizes.deformable_attention()
        self.ffn = sizes.feed_forward()
        self.norms = sizes.norms(3)

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        references: Tensor,
        memory: Tensor,
        shapes: Sequence[tuple[int, int]],
        padding: Tensor,
        mask: Tensor | None,
    ) -> Tensor:
        placed = x + position
        seen, _ = self.self_attention(placed, placed, x, attn_mask=mask, need_weights=False)
        x = self.norms[0](x + seen)
        x = self.norms[1](x + self.cross_attention(x + position, references, memory, shapes, padding))
        return self.norms[2](x + self.ffn(x))


class Decoder(nn.Module):
    """A stack of layers with one norm that all their outputs share."""

    def __init__(self, num_layers: int, sizes: LayerSizes) -> None:
        super().__init__()
        self.dim = dim = sizes.dim
        self.layers = nn.ModuleList(DecoderLayer(sizes) for _ in range(num_layers))
        self.position = nn.Sequential(nn.Linear(2 * dim, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.norm = nn.LayerNorm(dim)

    def forward(
        self,
        x: Tensor,
        logits: Tensor,
        box_branches: Sequence[nn.Module],
        memory: Tensor,
        shapes: Sequence[tuple[int, int]],
        ratios: Tensor,
        padding: Tensor,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run all layers.

        Args:
            x: content of the queries, ``(B, Q, dim)``.
            logits: of their boxes (cx, cy, w, h), ``(B, Q, 4)``.
            box_branches: one a layer; a layer's moves the references that the next layer gets.
            memory, shapes, ratios, padding: as in the encoder.
            mask: which queries must not see which, ``(Q, Q)``.

        Returns:
            Normed outputs ``(layers, B, Q, dim)``, and the references they are relative to,
            ``(layers, B, Q, 4)``. References carry gradients to the layer that made them ("look forward
            twice"), but none on to the layers before.
        """
        references = logits.sigmoid()
        outputs, seen = [], []
        current = references
        for layer, branch in zip(self.layers, box_branches, strict=False):
            scaled = current[:, :, None] * torch.cat([ratios, ratios], -1)[:, None]  # (B, Q, levels, 4)
            position = self.position(box_code(scaled[:, :, 0], self.dim // 2))
            x = layer(x, position, scaled, memory, shapes, padding, mask)
            outputs.append(self.norm(x))
            seen.append(references)
            references = (branch(x) + inverse_sigmoid(current)).sigmoid()
            current = references.detach()
        return torch.stack(outputs), torch.stack(seen)
