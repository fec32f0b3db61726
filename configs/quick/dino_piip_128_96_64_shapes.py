"""A PIIP DINO small enough to train on two CPU cores in a quarter of an hour, on the drawn shapes.

Branches and data are those of the quick Mask R-CNN. Levels have strides 8, 16 and 32, as DINO's usually do: a
map of stride 4 would be three quarters of all cells and a third of an iteration.
"""

from detectron2.config import LazyCall as L

from piip.detection.dino.detector import DINODetector
from piip.detection.dino.model import DINO
from piip.detection.dino.neck import ChannelMapper
from piip.quick.shapes import CLASSES

from ..common.tta import dino_tta as tta
from .mask_rcnn_piip_128_96_64_shapes import _channels, dataloader, lr_multiplier, optimizer, train
from .mask_rcnn_piip_128_96_64_shapes import model as _detector

_detector.backbone.scale_factors = [0.5]  # of the merged map of stride 4

model = L(DINODetector)(
    backbone=_detector.backbone,
    head=L(DINO)(
        neck=L(ChannelMapper)(in_dims=[_channels], dim=96, num_levels=3),
        num_classes=len(CLASSES),
        num_queries=60,
        num_denoising=40,
        dim=96,
        hidden_dim=192,
        num_heads=4,
        num_levels=3,
        encoder_layers=2,
        decoder_layers=3,
        max_detections=100,
    ),
    in_features=["p3"],
    pixel_mean=_detector.pixel_mean,
    pixel_std=_detector.pixel_std,
    size_divisibility=32,
)

dataloader.train.mapper.use_instance_mask = False
optimizer.lr = 8e-4
train.output_dir = "outputs/demo-dino"
dataloader.train.total_batch_size = 4  # many small steps: queries learn slowly
train.max_iter = 2000
lr_multiplier.warmup_length = 100 / train.max_iter
