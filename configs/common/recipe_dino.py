"""The published recipe of the DINO detectors: AdamW 2e-4, 32 images an iteration, steps near the end."""

from .recipe_1x import lr_multiplier, optimizer, train

_epoch = 3665  # ceil(117266 images with objects / 32 images an iteration)

optimizer.lr = 2e-4
train.eval_period = train.checkpointer.period = _epoch


def set_epochs(number: int, *steps: int) -> None:
    """How long to train, and after which epochs the rate falls to a tenth."""
    train.max_iter = number * _epoch
    lr_multiplier.scheduler.milestones = [step * _epoch for step in steps]
    lr_multiplier.scheduler.num_updates = train.max_iter
    lr_multiplier.warmup_length = 500 / train.max_iter
