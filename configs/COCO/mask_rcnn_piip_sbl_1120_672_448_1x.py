"""PIIP-SBL: S at 1120, B at 672, L at 448 px. Published AP: box 46.5, mask 40.8."""

from ..common.branches import vit
from ..common.data.coco import dataloader
from ..common.models.mask_rcnn_piip import model
from ..common.recipe_1x import lr_multiplier, optimizer, train
from ..common.resolution import set_image_sizes
from ..common.tta import rcnn_tta as tta

model.backbone.piip.branches = [vit(letter, 28) for letter in "LBS"]
set_image_sizes(model, dataloader, 1120, 672, 448)
