"""Cascade Mask R-CNN, PIIP-TSB at 1120/896/448 px, on LVIS v1 as ViTDet is trained."""

from ..COCO.vitdet_recipe.cascade_mask_rcnn_piip_tsb_1120_896_448_100ep import (
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
    tta,
)
from ..common.lvis import use_lvis

use_lvis(model, dataloader, optimizer, lr_multiplier, train)
