"""ViTDet's recipe: its pyramid and heads, large-scale jitter on squares, 100 epochs, layer-wise decay.

As Detectron2's projects/ViTDet has it at 1024 px; here the square is the size of the largest branch.
"""

from typing import Any

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L

from piip.detection.mmdetection.rules import use_rules

from .data.coco import dataloader
from .models.mask_rcnn_piip import model
from .recipe_1x import lr_multiplier, optimizer, train

use_rules("detectron2", model, dataloader)
model.pixel_mean = [123.675, 116.28, 103.53]
model.pixel_std = [58.395, 57.12, 57.375]
model.backbone.neck = "simple"
model.proposal_generator.head.conv_dims = [-1, -1]  # two convolutions as wide as the pyramid
model.roi_heads.box_head.conv_dims = [256] * 4
model.roi_heads.box_head.fc_dims = [1024]
model.roi_heads.box_head.conv_norm = model.roi_heads.mask_head.conv_norm = "LN"

dataloader.train.total_batch_size = 64
dataloader.train.mapper.recompute_boxes = True  # from the masks, which crops cut

# 100 epochs * 118000 images / 64 an iteration = 184375 iterations; steps after 8/9 and 26/27 of them
train.max_iter = 184375
train.eval_period = train.checkpointer.period = 5000  # 2.7 epochs
lr_multiplier.scheduler.milestones = [163889, 177546]
lr_multiplier.scheduler.num_updates = train.max_iter
lr_multiplier.warmup_length = 250 / train.max_iter

optimizer.weight_decay = 0.1
optimizer.params.undecayed = ["pos_embed"]


def set_square(size: int) -> None:
    """Train on random squares of `size` px, scaled by 0.1 to 2.0, and test on images that fit into one."""
    model.backbone.square_pad = size
    dataloader.train.mapper.augmentations = [
        L(T.RandomFlip)(horizontal=True),
        L(T.ResizeScale)(min_scale=0.1, max_scale=2.0, target_height=size, target_width=size),
        L(T.FixedSizeCrop)(crop_size=(size, size), pad=False),  # the model pads
    ]
    dataloader.test.mapper.augmentations = [L(T.ResizeShortestEdge)(short_edge_length=size, max_size=size)]


def set_branches(branches: list[Any], image_sizes: list[int]) -> None:
    """Give the detector its branches and their image sizes, the largest model first, as in `PIIP`.

    The layer-wise decay of the learning rate is 0.7 where B is the largest model, 0.8 where it is L.
    """
    model.backbone.piip.branches = branches
    model.backbone.piip.image_sizes = image_sizes
    optimizer.params.layer_decay_rate = {12: 0.7, 24: 0.8}[branches[0].depth]
    set_square(max(image_sizes))
