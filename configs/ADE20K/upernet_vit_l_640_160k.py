"""A single ViT-L on crops of 640 px, the baseline of PIIP-SBL. Published mIoU: 53.6.

Windows as in detection: two blocks of three.
"""

from ..common.branches import vit
from ..common.data.ade20k import dataloader, set_crop
from ..common.models.upernet_piip import model, set_width
from ..common.recipe_ade20k import lr_multiplier, optimizer, set_iterations, train
from ..common.tta import segmentation_tta as tta

model.backbone.piip.branches = [vit("L", [14, 14, None] * 8)]
model.backbone.piip.image_sizes = [640]
model.backbone.piip.num_interactions = 0
model.backbone.piip.merge = "identity"
model.backbone.pyramid_norm = "layer"
model.crop_size, model.stride = 640, 426
set_width(1024, 1024)
set_crop(640)
set_iterations(160_000)
