"""Reads published configurations and checkpoints: they become models of this package.

``build_*`` take the published settings, ``convert_*`` the published tensors. The names come from the rooms
they belong to, each imported when it is first asked for: reading a backbone needs no detector.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..classification.official import build_classifier
    from ..detection.dino.official import build_dino
    from ..multimodal.official import build_projector, build_tower
    from ..segmentation.official import build_segmentation_heads
    from ..weights.converters.backbone import convert_backbone, to_official_backbone
    from ..weights.converters.classifier import convert_classifier, to_official_classifier
    from ..weights.converters.dino import convert_dino, to_official_dino
    from ..weights.converters.llava import (
        convert_projector,
        convert_tower,
        to_official_projector,
        to_official_tower,
    )
    from ..weights.converters.mask_rcnn import convert_detector, is_official, to_official_detector
    from .backbone import build_backbone, build_branch

_ROOMS = {
    "build_backbone": "piip.official.backbone",
    "build_branch": "piip.official.backbone",
    "build_classifier": "piip.classification.official",
    "build_segmentation_heads": "piip.segmentation.official",
    "build_projector": "piip.multimodal.official",
    "build_tower": "piip.multimodal.official",
    "convert_backbone": "piip.weights.converters.backbone",
    "build_dino": "piip.detection.dino.official",
    "convert_classifier": "piip.weights.converters.classifier",
    "convert_dino": "piip.weights.converters.dino",
    "convert_detector": "piip.weights.converters.mask_rcnn",
    "convert_projector": "piip.weights.converters.llava",
    "convert_tower": "piip.weights.converters.llava",
    "is_official": "piip.weights.converters.mask_rcnn",
    "to_official_backbone": "piip.weights.converters.backbone",
    "to_official_classifier": "piip.weights.converters.classifier",
    "to_official_dino": "piip.weights.converters.dino",
    "to_official_projector": "piip.weights.converters.llava",
    "to_official_tower": "piip.weights.converters.llava",
    "to_official_detector": "piip.weights.converters.mask_rcnn",
}

__all__ = [
    "build_backbone",
    "build_branch",
    "build_classifier",
    "build_dino",
    "build_projector",
    "build_segmentation_heads",
    "build_tower",
    "convert_backbone",
    "convert_classifier",
    "convert_detector",
    "convert_dino",
    "convert_projector",
    "convert_tower",
    "is_official",
    "to_official_backbone",
    "to_official_classifier",
    "to_official_detector",
    "to_official_dino",
    "to_official_projector",
    "to_official_tower",
]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}: it has {', '.join(_ROOMS)}")
    return getattr(import_module(_ROOMS[name]), name)


def __dir__() -> list[str]:
    return sorted(_ROOMS)
