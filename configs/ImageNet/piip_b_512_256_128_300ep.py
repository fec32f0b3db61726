"""PIIP-B from scratch: three branches of 12 blocks, at 512, 256 and 128 px. Published top-1: 82.7.

The network is appendix C's. How it was trained was not published; this is DeiT's recipe.
"""

from detectron2.config import LazyCall as L

from piip.branches import ViTBranch

from ..common.data.imagenet import dataloader
from ..common.models.classifier_piip import model
from ..common.recipe_imagenet import loss, lr_scheduler, mixup, optimizer, train

model.piip.branches = [
    L(ViTBranch)(
        embed_dim=dim,
        depth=12,
        num_heads=heads,
        window_sizes=window,  # in tokens; the other images are one window, or less
        pretrain_image_size=size,
        drop_path_rate=0.1,
    )
    for dim, heads, size, window in ((640, 8, 128, None), (320, 4, 256, None), (160, 2, 512, 16))
]
model.piip.image_sizes = [128, 256, 512]
model.piip.merge = "linear"

dataloader.train.input_size = 512
dataloader.train.re_prob = 0.25
dataloader.train.re_mode = "pixel"

optimizer.lr = 1e-3  # 5e-4 * 1024 images / 512
optimizer.weight_decay = 0.05
optimizer.param_group_fn = None  # timm's: no decay of vectors and biases
lr_scheduler.step_on_epochs = False
train.plan.epochs = 300
train.plan.schedule_lag = 0
