"""PIIP-TSBL as the published code builds it: the smallest branch is a second S, for want of a T.

The released weights of PIIP-TSBL at 1344/896/672/448 are of this model if their fourth branch is 384 wide; if
it is 192 wide, use mask_rcnn_piip_tsbl_1344_896_672_448_1x.py.
"""

from ..common.branches import vit
from ..common.data.coco import dataloader
from ..common.models.mask_rcnn_piip import model
from ..common.recipe_1x import lr_multiplier, optimizer, train
from ..common.resolution import set_image_sizes
from ..common.tta import rcnn_tta as tta

model.backbone.piip.branches = [vit(letter, 28) for letter in "LBSS"]
set_image_sizes(model, dataloader, 1344, 896, 672, 448)
