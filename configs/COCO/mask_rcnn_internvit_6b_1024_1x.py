"""InternViT-6B at 1024 px, the baseline of PIIP-H6B: one branch. Published AP: box 53.8, mask 48.1."""

from ..common.branches import internvit_6b
from ..common.data.coco_multiscale import dataloader, set_multiscale
from ..common.models.mask_rcnn_piip import model
from ..common.recipe_1x import lr_multiplier, optimizer, train
from ..common.tta import rcnn_tta as tta

model.backbone.piip.branches = [internvit_6b()]
model.backbone.piip.image_sizes = [1024]
model.backbone.piip.num_interactions = 0
model.backbone.piip.merge = "identity"
model.backbone.pyramid_norm = "layer"
optimizer.params.layer_decay_rate = 0.95
model.backbone.piip.grad_checkpointing = True
model.backbone.size_divisibility = 64
set_multiscale(1024)
train.float32_heads = True  # as released; next to such a backbone it costs little
