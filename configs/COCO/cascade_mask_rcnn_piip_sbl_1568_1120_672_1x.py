"""Cascade Mask R-CNN, PIIP-SBL: S at 1568, B at 1120, L at 672 px. The paper reports box 53.6, mask 46.3 for
an SBL trained 1x; no config or weights were released, so the image sizes are those of Mask R-CNN's 50.0.
"""

from ..common.branches import vit
from ..common.data.coco import dataloader
from ..common.models.cascade_mask_rcnn_piip import model
from ..common.recipe_1x import lr_multiplier, optimizer, train
from ..common.resolution import set_image_sizes
from ..common.tta import rcnn_tta as tta

model.backbone.piip.branches = [vit(letter, 28) for letter in "LBS"]
set_image_sizes(model, dataloader, 1568, 1120, 672)
