"""PIIP-TSB: T at 1120, S at 896, B at 448 px. Published AP: box 43.6, mask 38.7."""

from ..common.branches import vit
from ..common.data.coco import dataloader
from ..common.models.mask_rcnn_piip import model
from ..common.recipe_1x import lr_multiplier, optimizer, train
from ..common.resolution import set_image_sizes
from ..common.tta import rcnn_tta as tta

model.backbone.piip.branches = [vit(letter, 14) for letter in "BST"]
set_image_sizes(model, dataloader, 1120, 896, 448)
