"""Cascade Mask R-CNN, PIIP-SBL: S at 1568, B at 1120, L at 672 px, multi-scale, 36 epochs. The paper reports
box 54.5 for an SBL trained so; no config or weights were released.
"""

from ..common.branches import vit
from .cascade_mask_rcnn_piip_tsb_1568_1120_672_3x import (
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
    tta,
)

model.backbone.piip.branches = [vit(letter, 28) for letter in "LBS"]
