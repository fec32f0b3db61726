"""PIIP-TSBL: T at 1344, S at 896, B at 672, L at 448 px. Published AP: box 47.1, mask 41.9."""

from ..common.branches import vit
from ..common.data.coco import dataloader
from ..common.models.mask_rcnn_piip import model
from ..common.recipe_1x import lr_multiplier, optimizer, train
from ..common.resolution import set_image_sizes
from ..common.tta import rcnn_tta as tta

model.backbone.piip.branches = [vit(letter, 28) for letter in "LBST"]
set_image_sizes(model, dataloader, 1344, 896, 672, 448)
