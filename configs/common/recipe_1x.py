"""The published 1x schedule: AdamW, layer-wise decay, 12 epochs, steps after 8 and 11."""

import torch
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler

from piip.engine.optim import param_groups

_epoch = 7330  # ceil(117266 images with objects / 16 images an iteration)

train = model_zoo.get_config("common/train.py").train
train.max_iter = 12 * _epoch
train.eval_period = _epoch
train.checkpointer.period = _epoch
train.precision = "bfloat16"
train.eval_precision = "float32"
train.tta = False

optimizer = L(torch.optim.AdamW)(
    params=L(param_groups)(base_lr="${..lr}", weight_decay="${..weight_decay}", layer_decay_rate=0.85),
    lr=1e-4,
    betas=(0.9, 0.999),
    weight_decay=0.05,
)

lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(
        values=[1.0, 0.1, 0.01], milestones=[8 * _epoch, 11 * _epoch], num_updates=train.max_iter
    ),
    warmup_length=500 / train.max_iter,
    warmup_factor=0.001,
)
