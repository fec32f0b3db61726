"""Test-time augmentation, by task; `train.tta=True` turns it on."""

from detectron2.config import LazyCall as L

from piip.segmentation.tta import SegmentorWithTTA

segmentation_tta = L(SegmentorWithTTA)(scales=[0.5, 0.75, 1.0, 1.25, 1.5, 1.75], flip=True)
