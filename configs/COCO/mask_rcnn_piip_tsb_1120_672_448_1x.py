"""PIIP-TSB: T at 1120, S at 672, B at 448 px. Published AP: box 42.7, mask 37.9."""

from ..common.resolution import set_image_sizes
from .mask_rcnn_piip_tsb_1120_896_448_1x import dataloader, lr_multiplier, model, optimizer, train, tta

set_image_sizes(model, dataloader, 1120, 672, 448)
