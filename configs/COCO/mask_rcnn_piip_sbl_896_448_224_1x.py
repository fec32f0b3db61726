"""PIIP-SBL: S at 896, B at 448, L at 224 px. Published AP: box 43.5, mask 37.7."""

from ..common.resolution import set_image_sizes
from .mask_rcnn_piip_sbl_1120_672_448_1x import dataloader, lr_multiplier, model, optimizer, train, tta

set_image_sizes(model, dataloader, 896, 448, 224)
model.backbone.piip.branches[0].window_sizes = 14  # the whole 14 x 14 map of the 224 px image
