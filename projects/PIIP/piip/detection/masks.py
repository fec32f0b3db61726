"""Masks of annotation files, checked before pycocotools reads them: malformed ones hang or crash it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from .numbers import UnusableError, whole_number

__all__ = ["FARTHEST", "LARGEST_IMAGE", "check_mask", "mask_area"]

LARGEST_IMAGE = 2**29
"""Pixels, exclusive: pycocotools misreads longer differences of run lengths."""

FARTHEST = 2**20
"""Pixels from the origin, of a box or corner."""

_LONGEST_OUTLINE = 2**20  # pixels: pycocotools takes about 100 bytes for each
_CORNERS = 3  # of the smallest polygon

Box = tuple[float, ...]


def check_mask(value: Any, image: dict[str, Any], fixed: list[str]) -> tuple[Any, Box | None]:
    """Check the mask of an annotation.

    Args:
        value: its "segmentation".
        image: its image, whose "height" and "width" are known to be whole numbers.
        fixed: what was fixed is added here, as a clause behind "annotations".

    Returns:
        Polygons ``[[x1, y1, x2, y2, ...], ...]`` or compressed run lengths, `value` itself where it has that
        form, and the box ``(x, y, width, height)`` around them. None and None where there is no mask.

    Raises:
        UnusableError: it is malformed, empty or not of the image's size.
    """
    if not value:
        return None, None
    if isinstance(value, dict):
        return _run_lengths(value, image)
    if not isinstance(value, list):
        raise UnusableError("whose mask is neither polygons nor run lengths")
    rings = value
    if not isinstance(value[0], list) or (len(value) >= _CORNERS and all(map(_is_point, value))):
        rings = [value]
    read = [_polygon(ring) for ring in rings]
    polygons = [polygon for polygon in read if len(polygon) >= 2 * _CORNERS]
    if not polygons:
        raise UnusableError("without a mask")
    if len(polygons) < len(read):
        fixed.append("with polygons of fewer than three corners, which were removed")
    if rings is not value or any(polygon is not ring for polygon, ring in zip(read, rings, strict=True)):
        fixed.append("with polygons in another form than [[x1, y1, x2, y2, ...], ...]")
    elif len(polygons) == len(read):
        polygons = value
    left, top = (min(min(polygon[axis::2]) for polygon in polygons) for axis in (0, 1))
    right, bottom = (max(max(polygon[axis::2]) for polygon in polygons) for axis in (0, 1))
    if left >= image["width"] or top >= image["height"] or right <= 0 or bottom <= 0:
        raise UnusableError("whose mask is outside the image")
    return polygons, (left, top, right - left, bottom - top)


def _is_point(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and not isinstance(value[0], list)


def _polygon(ring: Any) -> list[float]:
    """Coordinates ``[x1, y1, x2, y2, ...]``; the list itself where it has that form."""
    if not isinstance(ring, list):
        raise UnusableError("whose mask has a polygon that is no list of numbers")
    coordinates: list[float] = ring
    if not {*map(type, ring)} <= {int, float}:
        try:
            array = np.asarray(ring, dtype=np.float64)
        except (ValueError, TypeError, OverflowError) as error:
            raise UnusableError("whose mask has a polygon that is no list of numbers") from error
        if array.ndim > 1 and array.shape[-1] != 2:
            raise UnusableError("whose mask has a polygon that is no list of numbers")
        coordinates = array.ravel().tolist()
    if not coordinates:
        return coordinates
    low, high = min(coordinates), max(coordinates)
    if not (low >= -FARTHEST and high <= FARTHEST) or math.isnan(sum(coordinates)):
        raise UnusableError("whose mask has a corner that is infinite, NaN or far from the image")
    if len(coordinates) < 2 * _CORNERS:
        return coordinates
    if len(coordinates) % 2:
        raise UnusableError("whose mask has a polygon of an odd number of coordinates")
    if len(coordinates) * (high - low) > _LONGEST_OUTLINE:  # it may be too long
        corners = np.asarray(coordinates).reshape(-1, 2)
        if np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1).sum() > _LONGEST_OUTLINE:
            raise UnusableError("whose mask has a polygon of an impossible length")
    return coordinates


def _run_lengths(value: dict[str, Any], image: dict[str, Any]) -> tuple[dict[str, Any], Box]:
    """Compressed run lengths, and the box around them."""
    size = value.get("size")
    height, width = image["height"], image["width"]
    if not isinstance(size, list) or [whole_number(side) for side in size] != [height, width]:
        raise UnusableError("whose mask is not of the image's size")
    counts = value.get("counts")
    runs = _uncompressed(counts) if isinstance(counts, str) else _listed(counts)
    if runs is None or (runs < 0).any() or runs.sum() != height * width:
        raise UnusableError("whose mask's run lengths do not add up to the image")
    if not runs[1::2].any():
        raise UnusableError("whose mask is empty")
    compressed = (
        value
        if isinstance(counts, str) and size == [height, width]
        else coco_mask.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)
    )
    return compressed, tuple(coco_mask.toBbox(compressed).tolist())


def _listed(counts: Any) -> npt.NDArray[np.int64] | None:
    numbers = [whole_number(count) for count in counts] if isinstance(counts, list) else [None]
    return None if None in numbers or not numbers else np.array(numbers, dtype=np.int64)


def _uncompressed(text: str) -> npt.NDArray[np.int64] | None:
    """Run lengths of COCO's compressed form: differences to the run before last, 5 bits to a character.

    None for what its encoder cannot have written, on which pycocotools would not end, or not within memory.
    """
    if not text.isascii():
        return None
    codes = np.frombuffer(text.encode(), np.uint8).astype(np.int64) - 48
    if not codes.size or codes.min() < 0 or codes.max() >= 64 or codes[-1] & 32:
        return None
    ends = np.flatnonzero(codes & 32 == 0)
    lengths = np.diff(ends, prepend=-1)
    if lengths.max() > 6:
        return None
    starts = ends - lengths + 1
    digits = np.arange(codes.size) - np.repeat(starts, lengths)
    runs = np.add.reduceat((codes & 31) << (5 * digits), starts)
    runs -= (codes[ends] & 16 > 0) * (1 << (5 * lengths))  # the sign
    for first in (1, 2):
        runs[first::2] = runs[first::2].cumsum()
    return runs


def mask_area(mask: Any, image: dict[str, Any]) -> float:
    """Pixels of what :func:`check_mask` returned."""
    if isinstance(mask, list):
        mask = coco_mask.merge(coco_mask.frPyObjects(mask, image["height"], image["width"]))
    return float(coco_mask.area(mask))
