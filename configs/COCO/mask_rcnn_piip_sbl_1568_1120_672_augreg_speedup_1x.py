"""PIIP-SBL, AugReg, without norms and projections in the interactions. Published AP: box 48.1, mask 42.4."""

from ..common.branches import augreg
from ..common.data.coco import dataloader
from ..common.models.mask_rcnn_piip import model
from ..common.recipe_1x import lr_multiplier, optimizer, train
from ..common.resolution import set_image_sizes
from ..common.tta import rcnn_tta as tta

model.backbone.piip.branches = [augreg(letter, 28, "gelu_tanh") for letter in "LBS"]
model.backbone.piip.grad_checkpointing = True
model.backbone.piip.interaction.projection = False
model.backbone.piip.interaction.norm = False
set_image_sizes(model, dataloader, 1568, 1120, 672)
