"""PIIP-SBL: S at 1344, B at 672, L at 448 px. Published AP: box 47.5, mask 42.0."""

from ..common.resolution import set_image_sizes
from .mask_rcnn_piip_sbl_1120_672_448_1x import dataloader, lr_multiplier, model, optimizer, train, tta

set_image_sizes(model, dataloader, 1344, 672, 448)
