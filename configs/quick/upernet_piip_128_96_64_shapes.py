"""A PIIP UPerNet small enough to train on two CPU cores in minutes, on the label maps of the drawn shapes.

The branches, the schedule, the data and the two levels of the pyramid, at strides 4 and 8, are those of the
quick Mask R-CNN.
"""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from omegaconf import OmegaConf

from piip.engine.data import TrainLoader, evaluation_loader
from piip.engine.resize import ResizeToCover, ResizeToFit
from piip.quick.shapes import SEMANTIC_CLASSES
from piip.segmentation.data import SemanticMapper, semantic_dicts
from piip.segmentation.evaluation import SemanticEvaluator
from piip.segmentation.heads import FCNHead, SegmentationHeads, UPerNetHead
from piip.segmentation.own_data import FolderData
from piip.segmentation.segmentor import Segmentor

from ..common.tta import segmentation_tta as tta
from .mask_rcnn_piip_128_96_64_shapes import _channels, lr_multiplier, optimizer, train
from .mask_rcnn_piip_128_96_64_shapes import model as _detector

model = L(Segmentor)(
    backbone=_detector.backbone,
    heads=L(SegmentationHeads)(
        decode_head=L(UPerNetHead)(
            in_dims=[_channels] * 2, dim=_channels, num_classes=len(SEMANTIC_CLASSES), pool_scales=(1, 2, 4)
        ),
        auxiliary_head=L(FCNHead)(
            in_dim=_channels, dim=_channels, num_classes="${..decode_head.num_classes}"
        ),
        auxiliary_index=1,
    ),
    in_features=["p2", "p3"],
    pixel_mean=_detector.pixel_mean,
    pixel_std=_detector.pixel_std,
    crop_size=128,
    stride=86,
)

dataloader = OmegaConf.create()
dataloader.train = L(TrainLoader)(
    dataset=L(semantic_dicts)(names="shapes_sem_seg_train"),
    mapper=L(SemanticMapper)(
        is_train=True,
        augmentations=[L(ResizeToFit)(long_edge=128, short_edge=128), L(T.RandomFlip)(horizontal=True)],
        image_format="RGB",
        num_classes=len(SEMANTIC_CLASSES),
    ),
    total_batch_size=8,
    aspect_ratio_grouping=False,
)
dataloader.test = L(evaluation_loader)(
    dataset=L(semantic_dicts)(names="shapes_sem_seg_val"),
    mapper=L(SemanticMapper)(
        is_train=False,
        augmentations=[L(ResizeToCover)(short_edge=128)],
        image_format="RGB",
        num_classes="${...train.mapper.num_classes}",
    ),
)
dataloader.evaluator = L(SemanticEvaluator)(dataset_name="${..test.dataset.names}")
dataloader.own_data = L(FolderData)()  # what --data means

train.output_dir = "outputs/demo-segmentation"
train.max_iter = 1400  # 4.7 epochs: 1400 iterations * 8 / 2400 images; stars are learned last
lr_multiplier.warmup_length = 60 / train.max_iter
