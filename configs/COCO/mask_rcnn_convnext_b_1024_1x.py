"""ConvNeXt-B at 1024 px, the baseline of PIIP v2: one branch. Published AP: box 42.4, mask 38.7."""

from ..common.branches import convnext
from ..common.data.coco import dataloader
from ..common.models.mask_rcnn_piip import model
from ..common.recipe_1x import lr_multiplier, optimizer, train
from ..common.resolution import set_image_sizes
from ..common.tta import rcnn_tta as tta

model.backbone.piip.branches = [convnext("B")]
model.backbone.piip.branches[0].drop_path_rate = 0.0
model.backbone.piip.num_interactions = 0
model.backbone.piip.stages = [[[0, 2], [3, 6], [7, 34], [35, 38]]]
model.backbone.piip.tap_stages = [0, 1, 2]
model.backbone.piip.merge = "identity"
model.backbone.size_divisibility = 64
optimizer.params.layer_decay_rate = 1.0
set_image_sizes(model, dataloader, 1024)
