"""PIIP-TSB: T at 1792, S at 1344, B at 672 px. Published AP: box 46.8, mask 42.0."""

from ..common.resolution import set_image_sizes
from .mask_rcnn_piip_tsb_1120_896_448_1x import dataloader, lr_multiplier, model, optimizer, train, tta

set_image_sizes(model, dataloader, 1792, 1344, 672)
