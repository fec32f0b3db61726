"""DINO on a PIIP backbone, as released: maps at strides 8, 16 and 32; the head's neck adds a fourth level."""

from detectron2.config import LazyCall as L

from piip import PIIP, InteractionConfig
from piip.detection.dino.detector import DINODetector
from piip.detection.dino.model import DINO
from piip.detection.dino.neck import ChannelMapper
from piip.engine.backbone import released_maps

_MAPS = ["f2", "f3", "f4"]

model = L(DINODetector)(
    backbone=L(released_maps)(
        piip=L(PIIP)(branches=[], image_sizes=[], num_interactions=12, interaction=L(InteractionConfig)()),
        outputs=_MAPS,
    ),
    head=L(DINO)(neck=L(ChannelMapper)(in_dims=[3200] * 3, dim=256, num_levels=4), num_classes=80),
    in_features=_MAPS,
    pixel_mean=[127.5, 127.5, 127.5],
    pixel_std=[127.5, 127.5, 127.5],
    size_divisibility=64,
)
