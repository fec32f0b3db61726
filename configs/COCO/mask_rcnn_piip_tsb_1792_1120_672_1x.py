"""PIIP-TSB: T at 1792, S at 1120, B at 672 px. Published AP: box 46.7, mask 41.7."""

from ..common.resolution import set_image_sizes
from .mask_rcnn_piip_tsb_1120_896_448_1x import dataloader, lr_multiplier, model, optimizer, train, tta

set_image_sizes(model, dataloader, 1792, 1120, 672)
