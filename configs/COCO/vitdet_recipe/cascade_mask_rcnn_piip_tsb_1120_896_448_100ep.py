"""PIIP-TSB at 1120/896/448 px as ViTDet is trained, with Cascade Mask R-CNN."""

from ...common.cascade import use_cascade
from .mask_rcnn_piip_tsb_1120_896_448_100ep import dataloader, lr_multiplier, model, optimizer, train, tta

use_cascade(model)
tta.soft_nms = "linear"  # as ViTDet is compared with others
