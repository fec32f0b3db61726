"""ImageNet-1k as timm reads it: folders, tar shards or a Hugging Face data set (docs/classification.md)."""

from detectron2.config import LazyCall as L
from omegaconf import OmegaConf
from timm.data import create_dataset, create_loader

from piip.engine.data import dataset_root

dataloader = OmegaConf.create()
dataloader.train = L(create_loader)(
    dataset=L(create_dataset)(name="", root=str(dataset_root() / "imagenet"), split="train"),
    input_size=224,  # of the largest image; whoever imports this sets it
    auto_augment="rand-m9-mstd0.5-inc1",
    interpolation="bicubic",
    re_prob=0.0,
    num_workers=8,
)
dataloader.test = L(create_loader)(
    dataset=L(create_dataset)(
        name="${...train.dataset.name}", root="${...train.dataset.root}", split="validation"
    ),
    input_size="${..train.input_size}",
    interpolation="bicubic",
    crop_pct=1.0,
    num_workers="${..train.num_workers}",
)
