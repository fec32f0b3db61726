"""PIIP-TSB at 1120/896/448 px as ViTDet is trained: simple feature pyramid, squares of 1120 px."""

from ...common.branches import vit
from ...common.tta import rcnn_tta as tta
from ...common.vitdet_recipe import dataloader, lr_multiplier, model, optimizer, set_branches, train

set_branches([vit(letter, 14) for letter in "BST"], [448, 896, 1120])
