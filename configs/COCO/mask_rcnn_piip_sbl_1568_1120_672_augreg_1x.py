"""PIIP-SBL, all branches AugReg at 384 px. Published AP: box 48.3, mask 42.6."""

from ..common.branches import augreg
from ..common.data.coco import dataloader
from ..common.models.mask_rcnn_piip import model
from ..common.recipe_1x import lr_multiplier, optimizer, train
from ..common.resolution import set_image_sizes
from ..common.tta import rcnn_tta as tta

model.backbone.piip.branches = [augreg(letter, 28) for letter in "LBS"]
model.backbone.piip.grad_checkpointing = True
set_image_sizes(model, dataloader, 1568, 1120, 672)
