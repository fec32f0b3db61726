"""Image sizes of a detector: those of its branches and that of its data."""

from typing import Any


def set_image_sizes(model: Any, dataloader: Any, *sizes: int) -> None:
    """Give each branch its image size, in any order: the larger the model, the smaller its image.

    Images are resized to fit the largest, and 800/1333 of it on their short side, in training and test.
    """
    model.backbone.piip.image_sizes = sorted(sizes)
    for loader in (dataloader.train, dataloader.test):
        resize = loader.mapper.augmentations[0]
        resize.long_edge, resize.short_edge = max(sizes), max(sizes) * 800 // 1333
