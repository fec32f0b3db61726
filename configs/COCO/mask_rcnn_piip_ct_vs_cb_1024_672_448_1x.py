"""PIIP v2: ConvNeXt-T at 1024, DeiT III-S at 672, ConvNeXt-B at 448. Published AP: box 46.7, mask 42.0.

Images are resized to fit 1333x800 px: the image sizes only set the proportions.
"""

from ..common.data.coco import dataloader
from ..common.models.mask_rcnn_piip_convnext import model, optimizer, set_branches
from ..common.recipe_1x import lr_multiplier, train
from ..common.tta import rcnn_tta as tta

set_branches("cb", "vs", "ct")
