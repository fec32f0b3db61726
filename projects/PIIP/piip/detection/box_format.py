"""Whether the boxes of an annotation file have COCO's format, which only their masks and borders can tell."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["doubt_box_format"]

_AGREES = 0.5  # IoU of a box with the extent of its mask
_SHARE = 0.1  # of the boxes, from which their format is doubted
_EXPECTED = "; COCO's are [x, y, width, height] in pixels"

Array = npt.NDArray[np.float64]


def doubt_box_format(
    boxes: Sequence[Sequence[float]],
    extents: Sequence[Sequence[float] | None],
    sizes: Sequence[Sequence[float]],
) -> tuple[str, int]:
    """Why boxes seem to have another format, and the index of the first such box; "" and 0 if they do not.

    Args:
        boxes: ``(N, 4)``, meant to be x, y, width and height in pixels.
        extents: the box ``(x, y, width, height)`` around the mask of each, None where it has none.
        sizes: ``(N, 2)``, width and height of the image of each.
    """
    if not boxes:
        return "", 0
    b, size = np.array(boxes, dtype=np.float64), np.array(sizes, dtype=np.float64)
    readings = {
        "[x1, y1, x2, y2]": np.hstack([b[:, :2], b[:, 2:] - b[:, :2]]),
        "shares of the image's size": b * np.tile(size, 2),
        "[x centre, y centre, width, height]": np.hstack([b[:, :2] - b[:, 2:] / 2, b[:, 2:]]),
    }
    masked = np.array([extent is not None for extent in extents])
    if masked.any():
        around = np.array([extent or (0, 0, 0, 0) for extent in extents], dtype=np.float64)
        apart = masked & (_iou(b, around) < _AGREES)
        if not apart.any():
            return "", 0
        agreeing = [
            name
            for name, reading in readings.items()
            if np.mean(_iou(reading[apart], around[apart]) >= _AGREES) > 1 - _SHARE
        ]
        said = f"{apart.sum()} of {len(b)} boxes do not agree with their masks"
        read = f", and would as {agreeing[0]}" if agreeing else ""
        return said + read + _EXPECTED, int(apart.argmax())
    if np.mean(shares := (b <= 1).all(axis=1)) > 1 - _SHARE:
        return f"boxes look like shares of the image's size{_EXPECTED}", int(shares.argmax())
    outside = (b[:, :2] + b[:, 2:] > size + 1).any(axis=1)
    are_corners = (b[:, 2:] > b[:, :2]) & (b[:, 2:] <= size + 1)
    if np.mean(outside) > _SHARE and are_corners.all():
        return f"boxes look like [x1, y1, x2, y2]{_EXPECTED}", int(outside.argmax())
    return "", 0


def _iou(one: Array, other: Array) -> Array:
    """Intersection over union of boxes ``(N, 4)``, x, y, width and height, in pairs."""
    low = np.maximum(one[:, :2], other[:, :2])
    high = np.minimum(one[:, :2] + one[:, 2:], other[:, :2] + other[:, 2:])
    common = (high - low).clip(0).prod(axis=1)
    union = one[:, 2:].clip(0).prod(axis=1) + other[:, 2:].clip(0).prod(axis=1) - common
    return np.asarray(common / union.clip(1e-9))
