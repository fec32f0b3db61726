"""PIIP-TSB: T at 1344, S at 672, B at 448 px. Published AP: box 43.5, mask 38.9."""

from ..common.resolution import set_image_sizes
from .mask_rcnn_piip_tsb_1120_896_448_1x import dataloader, lr_multiplier, model, optimizer, train, tta

set_image_sizes(model, dataloader, 1344, 672, 448)
