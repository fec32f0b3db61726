"""PIIP-TSB: T at 1344, S at 896, B at 448 px. Published AP: box 44.5, mask 39.5."""

from ..common.resolution import set_image_sizes
from .mask_rcnn_piip_tsb_1120_896_448_1x import dataloader, lr_multiplier, model, optimizer, train, tta

set_image_sizes(model, dataloader, 1344, 896, 448)
