"""PIIP-SBL, L and B Uni-Perceiver, S DeiT III. Published AP: box 48.8, mask 42.9."""

from ..common.branches import uni_perceiver, vit
from ..common.data.coco import dataloader
from ..common.models.mask_rcnn_piip import model
from ..common.recipe_1x import lr_multiplier, optimizer, train
from ..common.resolution import set_image_sizes
from ..common.tta import rcnn_tta as tta

model.backbone.piip.branches = [uni_perceiver("L", 28), uni_perceiver("B", 28), vit("S", 28)]
set_image_sizes(model, dataloader, 1568, 1120, 672)
