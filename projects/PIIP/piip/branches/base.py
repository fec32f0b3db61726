"""The interface of a branch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Family = Literal[
    "deit",
    "deit3",
    "augreg",
    "mae",
    "dinov2",
    "internvit",
    "beitv2",
    "uni_perceiver",
    "convnext",
    "clip",
    "timm",
]
"""Families of published weights, which differ in names, layouts and what they leave out."""


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """Weights that a branch starts training from; :func:`piip.weights.pretrained.load_pretrained` loads them.

    Attributes:
        source: ``timm:`` and a timm name with its tag, ``hf:`` and a name on the Hugging Face hub, a URL, or
            a path.
        family: whose they are. It is named because a file does not always tell.

    Raises:
        ValueError: for an unknown family.
    """

    source: str
    family: Family

    def __post_init__(self) -> None:
        if self.family not in get_args(Family):
            raise ValueError(
                f"unknown family {self.family!r} of {self.source}: expected one of {get_args(Family)}"
            )


class Branch(nn.Module, ABC):
    """One model of the pyramid, run block by block on a token map.

    A family of models becomes a branch by building ``self.blocks`` and defining three things: how
    an image becomes the first token map (:meth:`embed`), and how wide (:meth:`channels`) and how coarse
    (:meth:`stride`) the map is after a given block. One with tokens beside its map hands them over in
    :meth:`prefix_tokens`.

    Token maps are ``(B, h, w, C)``. Read as ``(B, C, h, w)`` they are channels-last, so convolutions take
    them as they are.

    Args:
        pretrained: weights to start training from. Building a branch loads nothing.
    """

    blocks: nn.ModuleList | list[nn.Module]

    def __init__(self, pretrained: Pretrained | None = None) -> None:
        super().__init__()
        self.pretrained = pretrained
        self.grad_checkpointing = False

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    @abstractmethod
    def patch_size(self) -> int:
        """Side, in pixels, of the smallest image that gives one token."""

    @abstractmethod
    def embed(self, image: Tensor) -> Tensor:
        """Turn an image ``(B, 3, H, W)`` into the token map ``(B, h, w, C)`` that enters block 0."""

    @abstractmethod
    def channels(self, block: int) -> int:
        """Channels of the map after ``block``."""

    @abstractmethod
    def stride(self, block: int) -> int:
        """Image pixels per token, along one side, after ``block``."""

    def decay_depth(self, parameter: str) -> int | None:
        """Depth of a parameter, for layer-wise learning-rate decay.

        Args:
            parameter: its name within the branch.

        Returns:
            0 for what comes before the blocks, i + 1 for block i, or None where the family takes no part in
            it.
        """
        head, _, rest = parameter.partition(".")
        return int(rest.split(".")[0]) + 1 if head == "blocks" else 0

    def run_blocks(self, x: Tensor, first: int, last: int) -> Tensor:
        """Run blocks ``first`` to ``last`` inclusive on the map ``x`` ``(B, h, w, C)``."""
        for block in self.blocks[first : last + 1]:
            if self.grad_checkpointing and self.training:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x

    def prefix_tokens(self, batch: int) -> Tensor | None:
        """Class and register tokens ``(batch, P, C)`` that enter block 0 beside the map; None without any."""
        return None

    def embed_tokens(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """Everything that enters block 0: the map of :meth:`embed` and the :meth:`prefix_tokens`."""
        return self.embed(image), self.prefix_tokens(image.shape[0])

    def run_stage(
        self, x: Tensor, prefix: Tensor | None, first: int, last: int
    ) -> tuple[Tensor, Tensor | None]:
        """:meth:`run_blocks`, with prefix tokens that attend along and are set apart again.

        Args:
            x: the map ``(B, h, w, C)``.
            prefix: ``(B, P, C)``, or None.
            first, last: the blocks, inclusive.

        Returns:
            The map and the prefix tokens, as they leave the last block.
        """
        if prefix is None:
            return self.run_blocks(x, first, last), None
        # Blocks with attention over the whole map do not care for its shape: one row, (B, 1, P + h*w, C).
        count = prefix.shape[1]
        row = torch.cat([prefix, x.flatten(1, 2)], dim=1).unsqueeze(1)
        row = self.run_blocks(row, first, last).squeeze(1)
        return row[:, count:].unflatten(1, x.shape[1:3]), row[:, :count]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable
