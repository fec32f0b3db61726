"""PIIP-LH6B with DINO: L at 1536, H at 1024, InternViT-6B at 512 px. No weights, no result published."""

from ..common.data.coco_multiscale import dataloader, set_multiscale
from ..common.models.dino_piip import model
from ..common.recipe_dino import lr_multiplier, optimizer, set_epochs, train
from ..common.tta import dino_tta as tta
from .mask_rcnn_piip_lh6b_1536_1024_512_1x import model as _detector

model.backbone.piip = _detector.backbone.piip
model.backbone.extra = ["f1"]  # as in the released weights of three branches
set_multiscale(1536)
dataloader.train.total_batch_size = 32
dataloader.train.mapper.use_instance_mask = False
set_epochs(24, 16, 22)
