"""Uni-Perceiver: a transformer for any modality, here its image half."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from .vit import ViTBranch

__all__ = ["UniPerceiverBranch"]

_FRAMES = 8  # rows of the temporal embedding; an image is the first frame of a video


class UniPerceiverBranch(ViTBranch):
    """A Uni-Perceiver on images: a ViT with one temporal embedding for all tokens and a norm after both.

    Its two position embeddings are tables, as published: ``pos_embed`` ``(grid**2, C)``, ``temporal_embed``
    ``(8, C)``, of which images use the first row. Norms have an eps of 1e-5.

    Args:
        pretrain_image_size: side of the image the position embedding was trained for.
        drop_path_schedule, layer_scale and all others: as in :class:`ViTBranch`.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        pretrain_image_size: int = 224,
        drop_path_schedule: Literal["constant", "linear"] = "linear",
        layer_scale: float | None = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(
            embed_dim=embed_dim,
            pretrain_image_size=pretrain_image_size,
            drop_path_schedule=drop_path_schedule,
            layer_scale=layer_scale,
            norm_eps=1e-5,
            **options,
        )
        assert self.pos_embed is not None
        self.pos_embed = nn.Parameter(self.pos_embed.detach().flatten(0, 1))
        self.temporal_embed = nn.Parameter(nn.init.trunc_normal_(torch.empty(_FRAMES, embed_dim), std=0.02))
        self.embed_norm = nn.LayerNorm(embed_dim, eps=1e-5)

    def embed(self, image: Tensor) -> Tensor:
        return self.embed_norm(super().embed(image) + self.temporal_embed[0])
