"""The 1x recipe over 36 epochs, steps after 27 and 33."""

from .recipe_1x import _epoch, lr_multiplier, optimizer, train

train.max_iter = 36 * _epoch
lr_multiplier.scheduler.milestones = [27 * _epoch, 33 * _epoch]
lr_multiplier.scheduler.num_updates = train.max_iter
lr_multiplier.warmup_length = 500 / train.max_iter
