"""PIIP-TSBL: T at 1792, S at 1344, B at 896, L at 448 px. Published AP: box 49.0, mask 43.7."""

from ..common.resolution import set_image_sizes
from .mask_rcnn_piip_tsbl_1344_896_672_448_1x import dataloader, lr_multiplier, model, optimizer, train, tta

set_image_sizes(model, dataloader, 1792, 1344, 896, 448)
