"""PIIP-SBL, all branches DINOv2. Published AP: box 51.0, mask 44.7."""

from ..common.branches import dinov2
from ..common.data.coco import dataloader
from ..common.models.mask_rcnn_piip import model
from ..common.recipe_1x import lr_multiplier, optimizer, train
from ..common.resolution import set_image_sizes
from ..common.tta import rcnn_tta as tta

model.backbone.piip.branches = [dinov2(letter, 28) for letter in "LBS"]
model.backbone.piip.grad_checkpointing = True
set_image_sizes(model, dataloader, 1568, 1120, 672)
