"""DINO from images to boxes, as functions of tensors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..detection.dino.boxes import to_corners
from ..detection.dino.detector import DINODetector
from ..detection.dino.positions import level_masks
from .images import own_size, pad

__all__ = ["ExportableDINO"]


class ExportableDINO(nn.Module):
    """Detections of a DINO in images of one size. Each image has only its own padding, as in the detector."""

    def __init__(self, model: DINODetector) -> None:
        super().__init__()
        self.model = model

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what :meth:`forward` returns."""
        return ("boxes", "scores", "classes")

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Detections, best first.

        Args:
            images: ``(B, 3, H, W)`` in the model's channel order, 0 to 255.

        Returns:
            "boxes" ``(B, D, 4)``, (x1, y1, x2, y2) in pixels of the input; "scores" and "classes" ``(B, D)``,
            D the head's `max_detections`. Nothing is suppressed.
        """
        model, head, size = self.model, self.model.head, own_size(images)
        padded = pad((images - model.pixel_mean) / model.pixel_std, model.size_divisibility)
        features = model.backbone(padded)
        levels = head.levels([features[name] for name in model.in_features])
        masks = [
            mask.expand(images.shape[0], -1, -1) for mask in level_masks([size], own_size(padded), levels)
        ]
        predictions = head.predict_levels(levels, masks)
        logits, boxes = predictions.logits[-1], predictions.boxes[-1]
        number = min(head.max_detections, head.num_queries * head.num_classes)
        scores, best = logits.sigmoid().flatten(1).topk(number)
        query = best // head.num_classes
        x1, y1, x2, y2 = to_corners(boxes.gather(1, query[..., None].expand(-1, -1, 4))).unbind(-1)
        height, width = size
        corners = [
            (x * length).clamp(0, length)
            for x, length in ((x1, width), (y1, height), (x2, width), (y2, height))
        ]
        return {"boxes": torch.stack(corners, dim=-1), "scores": scores, "classes": best % head.num_classes}
