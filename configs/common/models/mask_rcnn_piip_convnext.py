"""Mask R-CNN on PIIP with ConvNeXt branches (PIIP v2): a pyramid of four depths, plain COCO images."""

from typing import Any

from detectron2.config import LazyCall as L

from ..branches import convnext, vit
from ..recipe_1x import optimizer
from .mask_rcnn_piip import model

# A stage of a ViT is a block. A ConvNeXt's first stages end where its map is about to be halved.
_STAGES = {
    "v": [[i, i] for i in range(12)],
    "ct": [[0, 2], [3, 6], [7, 8], *([i, i] for i in range(9, 17)), [17, 20]],
    "cs": [[0, 2], [3, 6], [7, 10], *([i, i + 2] for i in range(11, 33, 3)), [35, 38]],
}


def _stages(name: str) -> list[list[int]]:
    return _STAGES["v" if name[0] == "v" else "ct" if name == "ct" else "cs"]


def set_branches(*names: str) -> None:
    """Give the detector its branches, the largest model first: "cb", "vs", ..."""
    branches: list[Any] = [
        convnext(name[1].upper()) if name[0] == "c" else vit(name[1].upper(), 14) for name in names
    ]
    model.backbone.piip.branches = branches
    model.backbone.piip.stages = [_stages(name) for name in names]


model.pixel_mean, model.pixel_std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
model.backbone.size_divisibility = 32
model.backbone.piip.image_sizes = [448, 672, 1024]
model.backbone.piip.merge = "single_conv"
model.backbone.piip.tap_stages = [0, 1, 10]
optimizer.lr = 2e-4
optimizer.params.layer_decay_rate = 0.8
