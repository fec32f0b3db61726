"""COCO as published: one image size, horizontal flips, nothing else."""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.data import DatasetMapper
from omegaconf import OmegaConf

from piip.detection.data import dataset_dicts
from piip.detection.evaluation import COCOEvaluator
from piip.detection.mmdetection.mapper import ReleasedMapper
from piip.detection.own_data import CocoData
from piip.engine.data import TrainLoader, evaluation_loader
from piip.engine.resize import ResizeToFit

dataloader = OmegaConf.create()
dataloader.train = L(TrainLoader)(
    dataset=L(dataset_dicts)(names="coco_2017_train", rules="mmdetection"),
    mapper=L(ReleasedMapper)(
        is_train=True,
        augmentations=[L(ResizeToFit)(long_edge=1333, short_edge=800), L(T.RandomFlip)(horizontal=True)],
        image_format="RGB",
        use_instance_mask=True,
    ),
    total_batch_size=16,
    num_workers=4,
)
dataloader.test = L(evaluation_loader)(
    dataset=L(dataset_dicts)(names="coco_2017_val", filter_empty=False),
    mapper=L(DatasetMapper)(
        is_train=False,
        augmentations=[L(ResizeToFit)(long_edge=1333, short_edge=800)],
        image_format="${...train.mapper.image_format}",
    ),
    num_workers=4,
)
dataloader.evaluator = L(COCOEvaluator)(
    dataset_name="${..test.dataset.names}", output_dir="${train.output_dir}"
)
dataloader.own_data = L(CocoData)(rules="detectron2")  # what --data means
