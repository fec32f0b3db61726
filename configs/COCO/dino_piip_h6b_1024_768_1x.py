"""PIIP-H6B with DINO: MAE-H at 1024, InternViT-6B at 768 px. Published box AP: 60.0."""

from ..common.branches import internvit_6b, mae
from ..common.data.coco_multiscale import dataloader, set_multiscale
from ..common.models.dino_piip import model
from ..common.recipe_dino import lr_multiplier, optimizer, set_epochs, train
from ..common.tta import dino_tta as tta

model.backbone.piip.branches = [internvit_6b(), mae("H", None)]
model.backbone.piip.image_sizes = [768, 1024]
model.backbone.piip.grad_checkpointing = True
set_multiscale(1024)
dataloader.train.total_batch_size = 32
dataloader.train.mapper.use_instance_mask = False
set_epochs(12, 8, 11)
