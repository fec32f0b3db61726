"""PIIP-TSBL: T at 1568, S at 1120, B at 896, L at 448 px. Published AP: box 48.7, mask 43.4."""

from ..common.resolution import set_image_sizes
from .mask_rcnn_piip_tsbl_1344_896_672_448_1x import dataloader, lr_multiplier, model, optimizer, train, tta

set_image_sizes(model, dataloader, 1568, 1120, 896, 448)
