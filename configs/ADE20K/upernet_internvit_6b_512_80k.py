"""InternViT-6B at 512 px, the baseline of PIIP-H6B: one branch. Published mIoU: 58.42."""

from ..common.branches import internvit_6b
from ..common.data.ade20k import dataloader
from ..common.models.upernet_piip import model
from ..common.recipe_ade20k import lr_multiplier, optimizer, train
from ..common.tta import segmentation_tta as tta

model.backbone.piip.branches = [internvit_6b("gelu_tanh")]
model.backbone.piip.branches[0].pretrain_image_size = 512
model.backbone.piip.image_sizes = [512]
model.backbone.piip.num_interactions = 0
model.backbone.piip.merge = "identity"
model.backbone.pyramid_norm = "layer"
model.backbone.piip.grad_checkpointing = True
