"""The quick Mask R-CNN with a cascade of three box heads."""

from ..common.cascade import use_cascade
from .mask_rcnn_piip_128_96_64_shapes import dataloader, lr_multiplier, model, optimizer, train, tta

use_cascade(model)
train.output_dir = "outputs/cascade"
