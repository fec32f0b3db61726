"""PIIP-SBL: S at 384, B at 192, L at 128 px, AugReg. Published top-1: 85.9."""

from ..common.branches import augreg_classifier
from ..common.data.imagenet import dataloader
from ..common.models.classifier_piip import model, set_branches
from ..common.recipe_imagenet import loss, lr_scheduler, mixup, optimizer, train

set_branches(augreg_classifier, "LBS", 128, 192, 384)
dataloader.train.input_size = 384
