"""Names of tensors: of every released format, from its names to ours and back."""

from __future__ import annotations

from collections.abc import Collection

from .classifier import CLASSIFIER
from .dino import DINO
from .llava import LLAVA
from .mask_rcnn import MASK_RCNN
from .released import ReleasedFormat
from .segmentor import SEGMENTOR

__all__ = ["ReleasedFormat", "own_format", "released_format"]

_FORMATS = (LLAVA, DINO, SEGMENTOR, CLASSIFIER, MASK_RCNN)  # a DINO's names begin as a Mask R-CNN's, too


def released_format(names: Collection[str]) -> ReleasedFormat | None:
    """The format whose released names these are; None if they are others."""
    return next((one for one in _FORMATS if one.is_released(names)), None)


def own_format(names: Collection[str]) -> ReleasedFormat:
    """The format that a model with these names would be released in: a Mask R-CNN's if no other fits."""
    return next(one for one in _FORMATS if any(name.startswith(one.ours) for name in names))
