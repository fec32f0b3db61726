"""PIIP-SBL with DINO: DeiT III of 384 px, 36 epochs. Published box AP: 57.8."""

from ..common.branches import vit
from ..common.data.coco_multiscale import dataloader, set_multiscale
from ..common.models.dino_piip import model
from ..common.recipe_dino import lr_multiplier, optimizer, set_epochs, train
from ..common.tta import dino_tta as tta

model.backbone.piip.branches = [
    vit(letter, [24, 24, None] * thirds, 384) for letter, thirds in (("L", 8), ("B", 4), ("S", 4))
]
model.backbone.piip.image_sizes = [672, 1120, 1792]
model.backbone.extra = ["f1"]  # the released weights have a map at stride 4 that nothing reads
model.head.neck.in_dims = [1024] * 3
model.pixel_mean, model.pixel_std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
model.size_divisibility = 224
set_multiscale(1792)
dataloader.train.total_batch_size = 32
dataloader.train.mapper.use_instance_mask = False
set_epochs(36, 27, 33)
