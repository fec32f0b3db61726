"""PIIP-TSB: T at 1568, S at 1120, B at 672 px. Published AP: box 46.5, mask 41.3."""

from ..common.resolution import set_image_sizes
from .mask_rcnn_piip_tsb_1120_896_448_1x import dataloader, lr_multiplier, model, optimizer, train, tta

set_image_sizes(model, dataloader, 1568, 1120, 672)
