"""PIIP-H6B: MAE-H at 512, InternViT-6B at 192 px. Published mIoU: 57.81."""

from ..common.branches import internvit_6b, mae
from ..common.data.ade20k import dataloader
from ..common.models.upernet_piip import model
from ..common.recipe_ade20k import lr_multiplier, optimizer, train
from ..common.tta import segmentation_tta as tta

model.backbone.piip.branches = [internvit_6b("gelu_tanh"), mae("H", None, "gelu_tanh")]
model.backbone.piip.image_sizes = [192, 512]
model.backbone.piip.branches[0].pretrain_image_size = 192  # positions are kept at the size of the crop
model.backbone.piip.branches[1].pretrain_image_size = 512
model.backbone.piip.interaction.projection = model.backbone.piip.interaction.norm = False
model.backbone.piip.grad_checkpointing = True
