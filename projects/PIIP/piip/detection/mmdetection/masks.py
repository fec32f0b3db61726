"""Masks of objects as bitmaps, which sampling does not copy."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.layers import ROIAlign
from detectron2.structures import BitMasks
from torch import Tensor

__all__ = ["SharedBitMasks"]


class SharedBitMasks(BitMasks):
    """Detectron2's `BitMasks`, selected by reference: the masks of 512 samples of 7 objects are 7 bitmaps.

    Args:
        bitmaps: ``(objects, H, W)`` bool.
        index: ``(N,)`` int64, the bitmap that each mask is; None for all in turn.
    """

    def __init__(self, bitmaps: Tensor, index: Tensor | None = None) -> None:
        self.bitmaps, self.index = bitmaps, index
        self.image_size = bitmaps.shape[1:]

    @property
    def tensor(self) -> Tensor:
        """The masks, ``(N, H, W)`` bool, each a copy."""
        return self.bitmaps if self.index is None else self.bitmaps[self.index]

    def _indices(self) -> Tensor:
        if self.index is not None:
            return self.index
        return torch.arange(len(self.bitmaps), device=self.bitmaps.device)

    def __len__(self) -> int:
        return len(self._indices())

    def __getitem__(self, item: int | slice | Tensor) -> SharedBitMasks:
        return SharedBitMasks(self.bitmaps, self._indices()[item].reshape(-1))

    def to(self, *args: Any, **kwargs: Any) -> SharedBitMasks:
        index = None if self.index is None else self.index.to(*args, **kwargs)
        return SharedBitMasks(self.bitmaps.to(*args, **kwargs), index)

    def crop_and_resize(self, boxes: Tensor, mask_size: int) -> Tensor:
        """What of each mask is in its box, ``(N, mask_size, mask_size)`` bool.

        Args:
            boxes: ``(N, 4)``, (x1, y1, x2, y2) in pixels.
            mask_size: pixels a side of the result.
        """
        rois = torch.cat([self._indices()[:, None].to(boxes.dtype), boxes], dim=1)
        bitmaps = self.bitmaps[:, None].to(boxes.dtype)
        return ROIAlign((mask_size, mask_size), 1.0, 0)(bitmaps, rois)[:, 0] >= 0.5
