"""PIIP-TSB: T at 368, S at 192, B at 128 px, DeiT. Published top-1: 82.1."""

from ..common.branches import deit_classifier
from ..common.data.imagenet import dataloader
from ..common.models.classifier_piip import model, set_branches
from ..common.recipe_imagenet import loss, lr_scheduler, mixup, optimizer, train

set_branches(deit_classifier, "BST", 128, 192, 368)
dataloader.train.input_size = 368
