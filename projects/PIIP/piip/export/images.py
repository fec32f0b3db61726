"""Padding of images inside an exported graph, and images to test it with."""

from __future__ import annotations

from collections.abc import Sequence

import detectron2.data.transforms as T
import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import instantiate
from omegaconf import DictConfig
from torch import Tensor

from ..engine.prediction.sources import expand_inputs
from ..images import list_files, read_image
from .boxes import Size

__all__ = ["own_size", "pad", "read_images", "test_files"]


def pad(images: Tensor, divisibility: int, square: int = 0) -> Tensor:
    """Images ``(B, C, H, W)`` with zeros at the right and bottom, as Detectron2's `ImageList` pads them.

    Args:
        images: normalised.
        divisibility: pad to multiples of it.
        square: pad to a square of this side first; 0 for none.
    """
    divisibility = max(divisibility, 1)

    def missing(length: int) -> int:
        wanted = square or length
        # without a remainder, which PyTorch's compiler cannot simplify
        return (wanted + divisibility - 1) // divisibility * divisibility - length

    return F.pad(images, (0, missing(images.shape[3]), 0, missing(images.shape[2])))


def own_size(images: Tensor) -> Size:
    """Height and width of images ``(B, C, H, W)``."""
    return images.shape[2], images.shape[3]


def read_images(
    cfg: DictConfig, names: Sequence[str], number: int, *, input_format: str, largest: int | None = None
) -> list[Tensor]:
    """Images as a config's model gets them in evaluation.

    Every fourth is resized to another shape (an eighth higher, a quarter wider), which exposes graphs
    that only work for one size.

    Args:
        cfg: a LazyConfig; its `dataloader.test` says which images there are and how they are resized.
        names: files, folders and globs to take instead of the test set's.
        number: how many, at most.
        input_format: "RGB" or "BGR".
        largest: side that no image is stretched beyond, in pixels; None for no limit.

    Returns:
        Each ``(3, H, W)``, 8 bits.
    """
    files = [str(file) for file in expand_inputs(names)] if names else test_files(cfg)
    resize = _resizing(cfg)
    images = []
    for index, file in enumerate(files[:number]):
        bgr = read_image(file)
        pixels = T.AugInput(bgr if input_format == "BGR" else np.ascontiguousarray(bgr[:, :, ::-1]))
        resize(pixels)
        image = torch.from_numpy(np.ascontiguousarray(pixels.image.transpose(2, 0, 1)))
        if index % 4 == 3:
            height, width = image.shape[1:]
            size = [min(n, largest or n) for n in (height * 9 // 8, width * 5 // 4)]
            image = F.interpolate(image[None].float(), size, mode="bilinear")[0].to(torch.uint8)
        images.append(image)
    return images


def test_files(cfg: DictConfig) -> list[str]:
    """The images of a config's test set.

    Raises:
        FileNotFoundError: it is not there, or holds no images.
    """
    dataset = cfg.dataloader.test.dataset
    try:
        if "names" in dataset:
            files = [entry["file_name"] for entry in instantiate(dataset)]
        else:
            files = [str(file) for file in list_files(dataset.root, recursive=True)]
    except (OSError, ValueError, KeyError) as error:
        raise FileNotFoundError(
            f"the config's test set is not here: give images to compare with as --images ({error})"
        ) from error
    if not files:
        raise FileNotFoundError("the config's test set is empty: give images to compare with as --images")
    return files


def _resizing(cfg: DictConfig) -> T.AugmentationList:
    loader = cfg.dataloader.test
    if "mapper" in loader:
        return T.AugmentationList(instantiate(loader.mapper.augmentations))
    side = loader.input_size
    return T.AugmentationList([T.Resize((side, side))])
