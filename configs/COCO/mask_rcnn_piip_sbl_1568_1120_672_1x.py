"""PIIP-SBL: S at 1568, B at 1120, L at 672 px. Published AP: box 50.0, mask 44.4."""

from ..common.resolution import set_image_sizes
from .mask_rcnn_piip_sbl_1120_672_448_1x import dataloader, lr_multiplier, model, optimizer, train, tta

set_image_sizes(model, dataloader, 1568, 1120, 672)
