"""Test-time augmentation, by task; `train.tta=True` turns it on."""

from detectron2.config import LazyCall as L

from piip.detection.tta import DINOWithTTA, RCNNWithTTA
from piip.segmentation.tta import SegmentorWithTTA

# Detectron2's short sides of 400 to 1200 px, made for 800
_SCALES = [0.5, 0.625, 0.75, 0.875, 1.0, 1.125, 1.25, 1.375, 1.5]

rcnn_tta = L(RCNNWithTTA)(scales=_SCALES, flip=True, soft_nms=None)
dino_tta = L(DINOWithTTA)(scales=_SCALES, flip=True, soft_nms="linear")
segmentation_tta = L(SegmentorWithTTA)(scales=[0.5, 0.75, 1.0, 1.25, 1.5, 1.75], flip=True)
