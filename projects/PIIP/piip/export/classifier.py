"""Classifiers from pixels to logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..classification.classifier import PIIPClassifier

__all__ = ["ExportableClassifier"]


class ExportableClassifier(nn.Module):
    """A classifier with the normalisation of its images.

    Args:
        model: takes normalised images.
        mean, std: of each channel, of pixels in [0, 1], as timm gives them.
    """

    def __init__(self, model: PIIPClassifier, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        self.pixel_mean: Tensor
        self.pixel_std: Tensor
        self.register_buffer("pixel_mean", 255 * torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", 255 * torch.tensor(std).view(-1, 1, 1), persistent=False)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what :meth:`forward` returns."""
        return ("logits",)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """ "logits" ``(B, classes)`` of RGB images ``(B, 3, H, W)``, 0 to 255."""
        return {"logits": self.model((images - self.pixel_mean) / self.pixel_std)}
