"""The published recipe of segmentors: AdamW, layer-wise decay, 80,000 iterations, rates linear to 0."""

import torch
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import LinearParamScheduler

from piip.engine.optim import param_groups

train = model_zoo.get_config("common/train.py").train
train.eval_period = train.checkpointer.period = 8000
train.precision = "bfloat16"
train.eval_precision = "float32"
train.tta = False

optimizer = L(torch.optim.AdamW)(
    params=L(param_groups)(base_lr="${..lr}", weight_decay="${..weight_decay}", layer_decay_rate=0.95),
    lr=4e-5,
    betas=(0.9, 0.999),
    weight_decay=0.05,
)

lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(LinearParamScheduler)(start_value=1.0, end_value=0.0), warmup_factor=1e-6
)


def set_iterations(number: int) -> None:
    """How long to train."""
    train.max_iter = number
    lr_multiplier.warmup_length = 1500 / number


set_iterations(80_000)
