"""The published classifiers: their networks below the heads, from the paper's letters and image sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ..backbone import PIIP
from ..branches import ViTBranch, published

__all__ = ["from_scratch", "pretrained_heads"]

_SCRATCH = ((640, 8), (320, 4), (160, 2))  # channels and heads of PIIP-B, largest model first
_SCRATCH_WINDOW = 16  # tokens; on the largest image. The images of the others are one window, or less


def pretrained_heads(letters: str, sizes: Sequence[int], family: Literal["deit", "augreg"]) -> PIIP:
    """Branches with class tokens whose maps stay apart, for a head a branch (paper section 4.4).

    Args:
        letters: of the models, smallest first: "TSB".
        sizes: of their images, in the same order.
        family: "augreg" branches keep a row of positions for the class token, and have no layer scale.
    """
    make = published.deit_classifier if family == "deit" else published.augreg_classifier
    return PIIP(
        [make(letter, size).build() for letter, size in zip(reversed(letters), reversed(sizes), strict=True)],
        sizes[::-1],
        merge=None,
    )


def from_scratch(sizes: Sequence[int]) -> PIIP:
    """PIIP-B of appendix C: three branches of 12 blocks, merged, the largest image in windows.

    Args:
        sizes: of the images, largest first.
    """
    return PIIP(
        [
            ViTBranch(
                embed_dim=dim,
                depth=12,
                num_heads=heads,
                pretrain_image_size=size,
                window_sizes=_SCRATCH_WINDOW if size == max(sizes) else None,
            )
            for (dim, heads), size in zip(_SCRATCH, reversed(sizes), strict=True)
        ],
        sizes[::-1],
        merge="linear",
    )
