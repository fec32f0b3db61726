"""PIIP-LH6B: MAE-L at 640, MAE-H at 512, InternViT-6B at 192 px around crops of 512. mIoU unknown here."""

from ..common.branches import mae
from .upernet_piip_h6b_512_192_80k import dataloader, lr_multiplier, model, optimizer, train, tta

model.backbone.piip.branches.append(mae("L", None, "gelu_tanh"))
model.backbone.piip.branches[2].pretrain_image_size = 640
model.backbone.piip.image_sizes = [192, 512, 640]
model.backbone.piip.input_size = 512
train.max_iter = 160_000
lr_multiplier.warmup_length = 1500 / train.max_iter
