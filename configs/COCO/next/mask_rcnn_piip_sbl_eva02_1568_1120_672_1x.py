"""PIIP-SBL, all branches EVA-02: S at 1568, B at 1120, L at 672 px. Not published, not trained."""

from ...common.branches import eva02
from ...common.data.coco import dataloader
from ...common.models.mask_rcnn_piip import model
from ...common.recipe_1x import lr_multiplier, optimizer, train
from ...common.resolution import set_image_sizes

model.backbone.piip.branches = [eva02(letter, 14) for letter in "LBS"]
model.backbone.piip.grad_checkpointing = True
model.pixel_mean = [122.771, 116.747, 104.094]  # CLIP's, as in EVA-02's pretraining
model.pixel_std = [68.501, 66.632, 70.323]
set_image_sizes(model, dataloader, 1568, 1120, 672)
