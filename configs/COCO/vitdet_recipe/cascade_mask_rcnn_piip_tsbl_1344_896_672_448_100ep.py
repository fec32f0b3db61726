"""PIIP-TSBL at 1344/896/672/448 px as ViTDet is trained, with Cascade Mask R-CNN."""

from ...common.cascade import use_cascade
from .mask_rcnn_piip_tsbl_1344_896_672_448_100ep import (
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
    tta,
)

use_cascade(model)
tta.soft_nms = "linear"  # as ViTDet is compared with others
