"""COCO as published for the largest models: DETR's multi-scale training, then a crop of fixed size."""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L

from piip.engine.resize import OneOf, RandomResizeToFit

from .coco import dataloader


def set_multiscale(size: int) -> None:
    """Scale DETR's recipe, made for 1024 px, to images of `size` px, in training and test."""

    def scaled(*lengths: int) -> list[int]:
        return [length * size // 1024 for length in lengths]

    (long_edge,) = scaled(1333)
    resize = L(RandomResizeToFit)(long_edge=long_edge, short_edges=scaled(*range(480, 801, 32)))
    (crop_min, crop_max) = scaled(384, 600)
    dataloader.train.mapper.augmentations = [
        L(T.RandomFlip)(horizontal=True),
        L(OneOf)(
            policies=[
                [resize],
                [
                    L(RandomResizeToFit)(long_edge=long_edge, short_edges=scaled(400, 500, 600)),
                    L(T.RandomCrop)(crop_type="absolute_range", crop_size=(crop_min, crop_max)),
                    resize,
                ],
            ]
        ),
        L(T.RandomCrop)(crop_type="absolute", crop_size=(size, size)),
    ]
    test = dataloader.test.mapper.augmentations[0]
    test.long_edge, test.short_edge = scaled(1333, 800)
