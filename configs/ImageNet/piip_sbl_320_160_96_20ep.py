"""PIIP-SBL: S at 320, B at 160, L at 96 px, AugReg. Published top-1: 85.2."""

from ..common.branches import augreg_classifier
from ..common.data.imagenet import dataloader
from ..common.models.classifier_piip import model, set_branches
from ..common.recipe_imagenet import loss, lr_scheduler, mixup, optimizer, train

set_branches(augreg_classifier, "LBS", 96, 160, 320)
dataloader.train.input_size = 320
