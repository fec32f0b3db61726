"""PIIP-SBL: S at 1792, B at 1120, L at 672 px. Published AP: box 49.9, mask 44.6."""

from ..common.resolution import set_image_sizes
from .mask_rcnn_piip_sbl_1120_672_448_1x import dataloader, lr_multiplier, model, optimizer, train, tta

set_image_sizes(model, dataloader, 1792, 1120, 672)
