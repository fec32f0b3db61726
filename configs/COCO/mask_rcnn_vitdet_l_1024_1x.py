"""ViTDet-L at 1024 px, the paper's baseline. Published AP: box 46.7, mask 42.5."""

from ..common.branches import vit
from .mask_rcnn_vitdet_b_1024_1x import dataloader, lr_multiplier, model, optimizer, train, tta

model.backbone.piip.branches = [vit("L", [14, 14, None] * 8)]
