"""Segmentors from images to logits, with all windows in one batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..segmentation.segmentor import Segmentor
from .images import own_size

__all__ = ["ExportableSegmentor"]


class ExportableSegmentor(nn.Module):
    """A segmentor on images of one size.

    A model with overlapping windows runs all of them in one batch; images must be at least as large as a
    window.
    """

    def __init__(self, model: Segmentor) -> None:
        super().__init__()
        self.model = model

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what :meth:`forward` returns."""
        return ("sem_seg",)

    @property
    def smallest(self) -> int:
        """Smallest height and width of images, in pixels."""
        return 1 if self.model.stride is None else self.model.crop_size

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits of the classes.

        Args:
            images: ``(B, 3, H, W)`` in the model's channel order, 0 to 255.

        Returns:
            "sem_seg" ``(B, classes, H, W)`` float32.
        """
        model = self.model
        normalised = (images - model.pixel_mean) / model.pixel_std
        if model.stride is None:
            return {"sem_seg": model.window_logits(normalised).float()}
        return {"sem_seg": self._slide(normalised, model.crop_size, model.stride).float()}

    def _slide(self, images: Tensor, crop: int, stride: int) -> Tensor:
        """Logits averaged over windows, see :func:`piip.segmentation.inference.slide_inference`."""
        batch, channels = images.shape[:2]
        rows, columns = (_starts(length, crop, stride, images.device) for length in own_size(images))
        pixels = torch.arange(crop, device=images.device)
        y, x = ((start[:, None] + pixels).flatten() for start in (rows, columns))
        crops = images.index_select(2, y).index_select(3, x)
        crops = crops.reshape(batch, channels, rows.shape[0], crop, columns.shape[0], crop)
        logits = self.model.window_logits(crops.permute(0, 2, 4, 1, 3, 5).flatten(0, 2))
        logits = logits.reshape(batch, rows.shape[0], columns.shape[0], -1, crop, crop)
        logits = (
            logits.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
        )  # (B, classes, R * crop, C * crop)
        height, width = own_size(images)
        by_row = logits.new_zeros(batch, logits.shape[1], height, logits.shape[3]).index_add(2, y, logits)
        total = logits.new_zeros(batch, logits.shape[1], height, width).index_add(3, x, by_row)
        return total / (_counts(y, height)[:, None] * _counts(x, width))


def _starts(length: int, crop: int, stride: int, device: torch.device) -> Tensor:
    """First pixels of the windows along a side: a stride apart, the last moved back inside."""
    torch._check(length >= crop, lambda: f"a side of {length} px is shorter than the window of {crop} px")
    number = (length - crop + stride - 1) // stride + 1
    return (torch.arange(number, device=device) * stride).clamp(max=length - crop)


def _counts(places: Tensor, length: int) -> Tensor:
    """Number of windows that cover each pixel of a side, ``(length,)`` float32."""
    ones = torch.ones_like(places, dtype=torch.float32)
    return torch.zeros(length, device=places.device).index_add(0, places, ones)
