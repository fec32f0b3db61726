"""Segmentation of an image in overlapping windows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import torch
from torch import Tensor

from .heads import resize

__all__ = ["slide_inference", "windows"]

Size = int | tuple[int, int]


def _pair(size: Size) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def windows(height: int, width: int, crop_size: Size, stride: Size) -> list[tuple[int, int, int, int]]:
    """Windows (top, left, bottom, right) that cover an image, row by row.

    They lie a stride apart; the last of a row or column is moved back inside. Where the image is smaller than
    the crop, the window is as small.

    Raises:
        ValueError: a size is no positive number, or windows would leave gaps.
    """
    (crop_height, crop_width), (stride_height, stride_width) = _pair(crop_size), _pair(stride)
    if min(crop_height, crop_width, stride_height, stride_width) < 1:
        raise ValueError(f"crop {crop_size} and stride {stride} must be positive numbers of pixels")
    if stride_height > crop_height or stride_width > crop_width:
        raise ValueError(f"a stride of {stride} leaves gaps between crops of {crop_size}: take at most that")
    places = []
    for row in range(max(height - crop_height + stride_height - 1, 0) // stride_height + 1):
        for column in range(max(width - crop_width + stride_width - 1, 0) // stride_width + 1):
            bottom = min(row * stride_height + crop_height, height)
            right = min(column * stride_width + crop_width, width)
            places.append((max(bottom - crop_height, 0), max(right - crop_width, 0), bottom, right))
    return places


def slide_inference(
    network: Callable[[Tensor], Tensor],
    image: Tensor,
    crop_size: Size,
    stride: Size,
    *,
    max_windows: int = 4,
) -> Tensor:
    """Logits of an image, averaged over overlapping windows.

    Args:
        network: from images ``(N, 3, h, w)`` to logits ``(N, classes, h', w')``, enlarged to (h, w) here.
        image: ``(B, 3, H, W)``.
        crop_size, stride: of the windows, in pixels: one number, or (height, width).
        max_windows: windows in one call of the network, which bounds memory; at least one of all B images.

    Returns:
        ``(B, classes, H, W)``, summed in at least float32 on the image's device.
    """
    batch, _, height, width = image.shape
    places = iter(windows(height, width, crop_size, stride))
    total: Tensor | None = None
    count = image.new_zeros(height, width, dtype=torch.float32)
    for group in _groups(places, max(1, max_windows // batch)):
        crops = torch.cat([image[:, :, top:bottom, left:right] for top, left, bottom, right in group])
        logits = resize(network(crops), crops.shape[2:])
        for (top, left, bottom, right), part in zip(group, logits.split(batch), strict=True):
            if total is None:
                dtype = torch.promote_types(part.dtype, torch.float32)
                total = part.new_zeros(batch, part.shape[1], height, width, dtype=dtype)
            total[:, :, top:bottom, left:right] += part
            count[top:bottom, left:right] += 1
    assert total is not None  # there is at least one window
    return total / count


def _groups(
    places: Iterator[tuple[int, int, int, int]], size: int
) -> Iterator[list[tuple[int, int, int, int]]]:
    while group := list(islice(places, size)):
        yield group
