"""PIIP-TSB: T at 896, S at 672, B at 448 px. Published AP: box 42.1, mask 36.9."""

from ..common.resolution import set_image_sizes
from .mask_rcnn_piip_tsb_1120_896_448_1x import dataloader, lr_multiplier, model, optimizer, train, tta

set_image_sizes(model, dataloader, 896, 672, 448)
