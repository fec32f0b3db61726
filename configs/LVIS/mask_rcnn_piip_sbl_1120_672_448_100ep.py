"""Mask R-CNN, PIIP-SBL at 1120/672/448 px, on LVIS v1 as ViTDet is trained."""

from ..COCO.vitdet_recipe.mask_rcnn_piip_sbl_1120_672_448_100ep import (
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
    tta,
)
from ..common.lvis import use_lvis

use_lvis(model, dataloader, optimizer, lr_multiplier, train)
