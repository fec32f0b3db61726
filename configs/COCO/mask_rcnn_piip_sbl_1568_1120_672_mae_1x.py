"""PIIP-SBL, L and B MAE, S DeiT III. Published AP: box 49.1, mask 43.0."""

from ..common.branches import mae, vit
from ..common.data.coco import dataloader
from ..common.models.mask_rcnn_piip import model
from ..common.recipe_1x import lr_multiplier, optimizer, train
from ..common.resolution import set_image_sizes
from ..common.tta import rcnn_tta as tta

model.backbone.piip.branches = [mae("L", 28), mae("B", 28), vit("S", 28)]
model.backbone.piip.grad_checkpointing = True
set_image_sizes(model, dataloader, 1568, 1120, 672)
