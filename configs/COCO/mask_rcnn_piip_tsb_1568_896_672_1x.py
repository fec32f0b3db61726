"""PIIP-TSB: T at 1568, S at 896, B at 672 px. Published AP: box 45.8, mask 40.7."""

from ..common.resolution import set_image_sizes
from .mask_rcnn_piip_tsb_1120_896_448_1x import dataloader, lr_multiplier, model, optimizer, train, tta

set_image_sizes(model, dataloader, 1568, 896, 672)
