"""PIIP-TSBL: T at 1792, S at 1568, B at 1120, L at 448 px. Published AP: box 49.4, mask 44.1."""

from ..common.resolution import set_image_sizes
from .mask_rcnn_piip_tsbl_1344_896_672_448_1x import dataloader, lr_multiplier, model, optimizer, train, tta

set_image_sizes(model, dataloader, 1792, 1568, 1120, 448)
