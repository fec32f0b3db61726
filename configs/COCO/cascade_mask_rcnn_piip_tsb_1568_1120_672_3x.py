"""Cascade Mask R-CNN, PIIP-TSB: T at 1568, S at 1120, B at 672 px, multi-scale, 36 epochs. The paper reports
box 53.1 for a TSB trained so; no config or weights were released.
"""

from ..common.branches import vit
from ..common.data.coco_multiscale import dataloader, set_multiscale
from ..common.models.cascade_mask_rcnn_piip import model
from ..common.recipe_3x import lr_multiplier, optimizer, train
from ..common.tta import rcnn_tta as tta

model.backbone.piip.branches = [vit(letter, 14) for letter in "BST"]
model.backbone.piip.image_sizes = [672, 1120, 1568]
set_multiscale(1568)
