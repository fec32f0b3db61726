"""ViTDet-B at 1024 px, the paper's baseline: one branch and no interaction. Published AP: box 43.7, mask
39.7.
"""

from ..common.branches import vit
from ..common.data.coco import dataloader
from ..common.models.mask_rcnn_piip import model
from ..common.recipe_1x import lr_multiplier, optimizer, train
from ..common.resolution import set_image_sizes
from ..common.tta import rcnn_tta as tta

model.backbone.piip.branches = [vit("B", [14, 14, None] * 4)]  # every third block is global
model.backbone.piip.num_interactions = 0
model.backbone.piip.merge = "identity"
model.backbone.pyramid_norm = "layer"
model.backbone.size_divisibility = 64
optimizer.params.layer_decay_rate = 0.95
set_image_sizes(model, dataloader, 1024)
