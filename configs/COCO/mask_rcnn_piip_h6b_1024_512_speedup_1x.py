"""PIIP-H6B without norms and projections in the interactions. Published AP: box 55.6, mask 49.0."""

from ..common.branches import internvit_6b, mae
from ..common.data.coco_multiscale import dataloader, set_multiscale
from ..common.models.mask_rcnn_piip import model
from ..common.recipe_1x import lr_multiplier, optimizer, train
from ..common.tta import rcnn_tta as tta

model.backbone.piip.branches = [internvit_6b("gelu_tanh"), mae("H", None, "gelu_tanh")]
model.backbone.piip.image_sizes = [512, 1024]
model.backbone.piip.interaction.projection = False
model.backbone.piip.interaction.norm = False
model.backbone.piip.grad_checkpointing = True
model.backbone.size_divisibility = 64
set_multiscale(1024)
train.float32_heads = True  # as released; next to such a backbone it costs little
