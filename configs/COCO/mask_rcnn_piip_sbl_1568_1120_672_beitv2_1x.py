"""PIIP-SBL, L and B BEiTv2, S DeiT III. Published AP: box 51.8, mask 45.4."""

from ..common.branches import beitv2, vit
from ..common.data.coco import dataloader
from ..common.models.mask_rcnn_piip import model
from ..common.recipe_1x import lr_multiplier, optimizer, train
from ..common.resolution import set_image_sizes
from ..common.tta import rcnn_tta as tta

model.backbone.piip.branches = [beitv2("L", 28), beitv2("B", 28), vit("S", 28)]
set_image_sizes(model, dataloader, 1568, 1120, 672)
