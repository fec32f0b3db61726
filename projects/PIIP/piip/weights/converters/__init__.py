"""The kinds of checkpoints that were released, told apart by the names of their tensors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from torch import Tensor

from .classifier import convert_classifier, to_official_classifier
from .dino import convert_dino_detector, to_official_dino_detector
from .llava import convert_llava, to_official_llava
from .mask_rcnn import convert_detector, to_official_detector
from .segmentor import convert_segmentor, to_official_segmentor

__all__ = ["ReleasedFormat", "own_format", "published_format"]

_Rename = Callable[[Mapping[str, Tensor], object], dict[str, Tensor]]


@dataclass(frozen=True)
class ReleasedFormat:
    """A kind of checkpoint.

    Attributes:
        name: of what is in it.
        published: how some of its names begin, and none of ours.
        ours: how some of our model's begin.
        convert: from the published names to ours; the second argument is what to call the source in errors.
        to_official: and back.
    """

    name: str
    published: tuple[str, ...]
    ours: tuple[str, ...]
    convert: _Rename
    to_official: _Rename


_FORMATS = (
    ReleasedFormat(
        "PIIP-LLaVA",
        ("model.mm_projector.", "model.vision_tower.vision_tower."),
        ("model.multi_modal_projector.", "model.vision_tower.tower."),
        convert_llava,
        to_official_llava,
    ),
    ReleasedFormat(
        "DINO detector",
        ("bbox_head.transformer.",),
        ("head.encoder.",),
        convert_dino_detector,
        to_official_dino_detector,
    ),
    ReleasedFormat(
        "segmentor",
        ("decode_head.", "auxiliary_head."),
        ("heads.decode_head.",),
        convert_segmentor,
        to_official_segmentor,
    ),
    ReleasedFormat(
        "classifier",
        ("branch1.head.", "cls_head."),
        ("head.heads.", "head.head."),
        convert_classifier,
        to_official_classifier,
    ),
    ReleasedFormat(
        "detector",
        ("neck.", "roi_head.", "rpn_head.", "bbox_head."),
        ("",),
        convert_detector,
        to_official_detector,
    ),
)


def published_format(names: Collection[str]) -> ReleasedFormat | None:
    """The format whose published names these are; None where they are not published ones."""
    return next((f for f in _FORMATS if any(name.startswith(f.published) for name in names)), None)


def own_format(names: Collection[str]) -> ReleasedFormat:
    """The format that a model with these names would be released in: a detector's where no other fits."""
    return next(f for f in _FORMATS if any(name.startswith(f.ours) for name in names))
