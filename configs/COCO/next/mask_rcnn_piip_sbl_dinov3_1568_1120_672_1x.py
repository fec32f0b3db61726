"""PIIP-SBL, all branches DINOv3: S at 1568, B at 1120, L at 672 px. Not published, not trained."""

from ...common.branches import dinov3
from ...common.data.coco import dataloader
from ...common.models.mask_rcnn_piip import model
from ...common.recipe_1x import lr_multiplier, optimizer, train
from ...common.resolution import set_image_sizes

model.backbone.piip.branches = [dinov3(letter, 14) for letter in "LBS"]
model.backbone.piip.grad_checkpointing = True
model.pixel_mean = [123.675, 116.28, 103.53]  # ImageNet's, as in DINOv3's pretraining
model.pixel_std = [58.395, 57.12, 57.375]
set_image_sizes(model, dataloader, 1568, 1120, 672)
