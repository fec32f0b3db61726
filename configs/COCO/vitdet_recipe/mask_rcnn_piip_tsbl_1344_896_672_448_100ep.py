"""PIIP-TSBL at 1344/896/672/448 px as ViTDet is trained: simple feature pyramid, squares of 1344 px."""

from ...common.branches import vit
from ...common.tta import rcnn_tta as tta
from ...common.vitdet_recipe import dataloader, lr_multiplier, model, optimizer, set_branches, train

set_branches([vit(letter, 28) for letter in "LBST"], [448, 672, 896, 1344])
