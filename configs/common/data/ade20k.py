"""ADE20K as published: 150 classes, random sizes and crops, flips, colours."""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.projects.point_rend import ColorAugSSDTransform
from omegaconf import OmegaConf

from piip.engine.data import TrainLoader, evaluation_loader
from piip.engine.resize import RandomScaleToFit, ResizeToCover
from piip.segmentation.data import SemanticMapper, semantic_dicts
from piip.segmentation.evaluation import SemanticEvaluator
from piip.segmentation.own_data import FolderData

dataloader = OmegaConf.create()
dataloader.train = L(TrainLoader)(
    dataset=L(semantic_dicts)(names="ade20k_sem_seg_train"),
    mapper=L(SemanticMapper)(
        is_train=True,
        augmentations=[
            L(RandomScaleToFit)(long_edge=2048, short_edge=512, low=0.5, high=2.0),
            L(T.RandomCrop_CategoryAreaConstraint)(
                crop_type="absolute",
                crop_size=[512, 512],
                single_category_max_area=0.75,
                ignored_category=255,
            ),
            L(T.RandomFlip)(horizontal=True),
            L(ColorAugSSDTransform)(img_format="RGB"),
        ],
        image_format="RGB",
        num_classes=150,
    ),
    total_batch_size=16,
    num_workers=4,
    aspect_ratio_grouping=False,
)
dataloader.test = L(evaluation_loader)(
    dataset=L(semantic_dicts)(names="ade20k_sem_seg_val"),
    mapper=L(SemanticMapper)(
        is_train=False,
        augmentations=[L(ResizeToCover)(short_edge=512)],
        image_format="RGB",
        num_classes="${...train.mapper.num_classes}",
    ),
    num_workers=4,
)
dataloader.evaluator = L(SemanticEvaluator)(dataset_name="${..test.dataset.names}")
dataloader.own_data = L(FolderData)()  # what --data means


def set_crop(size: int) -> None:
    """Train on crops of another size, of images that are larger or smaller by as much."""
    scale, crop = dataloader.train.mapper.augmentations[:2]
    scale.long_edge, scale.short_edge = 4 * size, size
    crop.crop_size = [size, size]
    dataloader.test.mapper.augmentations[0].short_edge = size
