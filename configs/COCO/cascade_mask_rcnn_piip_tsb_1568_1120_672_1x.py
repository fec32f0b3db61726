"""Cascade Mask R-CNN, PIIP-TSB: T at 1568, S at 1120, B at 672 px. Nothing published for 1x, no weights
released.
"""

from ..common.branches import vit
from ..common.data.coco import dataloader
from ..common.models.cascade_mask_rcnn_piip import model
from ..common.recipe_1x import lr_multiplier, optimizer, train
from ..common.resolution import set_image_sizes
from ..common.tta import rcnn_tta as tta

model.backbone.piip.branches = [vit(letter, 14) for letter in "BST"]
set_image_sizes(model, dataloader, 1568, 1120, 672)
