"""A PIIP-B small enough to train on two CPU cores in minutes, on the patterned shapes that the demo draws.

As in PIIP-B, widths are as 4 : 2 : 1 and image sizes as 1 : 2 : 4: 128 channels at 24 px, 64 at 48 px, 32 at
96 px, in attention windows there; patches of 8 px; one head on the merged map.
"""

import torch
from detectron2.config import LazyCall as L
from omegaconf import OmegaConf
from timm.data import Mixup, create_dataset, create_loader
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2

from piip import PIIP, InteractionConfig
from piip.branches import ViTBranch
from piip.classification.classifier import PIIPClassifier
from piip.classification.trainer import Plan
from piip.engine.data import dataset_root
from piip.quick.drawing import CLASSES

model = L(PIIPClassifier)(
    piip=L(PIIP)(
        branches=[
            L(ViTBranch)(
                embed_dim=dim,
                depth=3,
                num_heads=heads,
                patch_size=8,
                window_sizes=window,
                pretrain_image_size=size,
                weight_init="xavier",
            )
            for dim, heads, size, window in ((128, 4, 24, None), (64, 2, 48, None), (32, 1, 96, 6))
        ],
        image_sizes=[24, 48, 96],
        num_interactions=3,
        interaction=L(InteractionConfig)(num_heads=4, drop_path_rate=0.0),
        merge="linear",
    ),
    num_classes=len(CLASSES),
)

dataloader = OmegaConf.create()
dataloader.train = L(create_loader)(
    dataset=L(create_dataset)(name="", root=str(dataset_root() / "patterns"), split="train"),
    input_size=96,
    scale=[0.8, 1.0],
    hflip=0.5,
    color_jitter=0.0,
    num_workers=1,
)
dataloader.test = L(create_loader)(
    dataset=L(create_dataset)(name="${...train.dataset.name}", root="${...train.dataset.root}", split="val"),
    input_size="${..train.input_size}",
    crop_pct=1.0,
    num_workers="${..train.num_workers}",
)
mixup = L(Mixup)(prob=0.0, label_smoothing=0.1, num_classes="${..model.num_classes}")
loss = L(SoftTargetCrossEntropy)()

optimizer = L(create_optimizer_v2)(
    opt="adamw",
    lr=1.5e-3,
    weight_decay=0.05,
    fused=True,  # on the CPU the default loops over the parameters
)
lr_scheduler = L(create_scheduler_v2)(
    sched="cosine",
    num_epochs="${..train.plan.epochs}",
    warmup_epochs=1,
    warmup_lr=1e-5,
    step_on_epochs=False,
)

train = OmegaConf.create()
train.device = "cpu"
train.seed = 0
train.total_batch_size = 32
train.init_checkpoint = ""
train.eval_precision = "float32"
train.ema = None
train.plan = L(Plan)(epochs=4, output_dir="outputs/demo-classification", precision="float32", eval_period=0)
