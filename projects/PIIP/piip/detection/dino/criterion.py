"""DINO's losses: focal, L1 and generalised IoU for every layer, matched or known."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from .boxes import box_iou_terms, to_corners

__all__ = ["Pairs", "mean_over_processes", "set_losses"]


class Pairs(NamedTuple):
    """Predictions and the objects they belong to, in all images of a batch.

    Attributes:
        images, predictions, objects: indices, ``(layers, n)`` or, the same for all layers, ``(1, n)``;
            objects are numbered through all images.
    """

    images: Tensor
    predictions: Tensor
    objects: Tensor


_L1, _GIOU = 5.0, 2.0
_EPS = torch.finfo(torch.float32).eps  # added to the number of objects, whatever the type


def mean_over_processes(number: float, like: Tensor) -> Tensor:
    """The mean of a number over all processes, at least 1, on the device of ``like``."""
    value = torch.as_tensor(float(number), dtype=like.dtype, device=like.device)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(value)
        value = value / dist.get_world_size()
    return value.clamp(min=1)


def set_losses(
    logits: Tensor,
    boxes: Tensor,
    pairs: Pairs,
    true_boxes: Tensor,
    labels: Tensor,
    scales: Tensor,
    normaliser: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses of all layers: of classes, of boxes (L1) and of boxes (generalised IoU in pixels), weighted.

    Args:
        logits: ``(layers, B, Q, C)``; what is in no pair is background.
        boxes: ``(layers, B, Q, 4)``, (cx, cy, w, h) fractions.
        pairs: see :class:`Pairs`.
        true_boxes, labels: of all objects, ``(n, 4)`` likewise and ``(n,)``.
        scales: (w, h, w, h) of each image in pixels, ``(B, 4)``.
        normaliser: the number of objects to divide by.

    Returns:
        Three losses ``(layers,)``.
    """
    layers = torch.arange(len(logits), device=logits.device)[:, None]
    targets = torch.zeros_like(logits)
    targets[layers, pairs.images, pairs.predictions, labels[pairs.objects]] = 1
    found = boxes[layers, pairs.images, pairs.predictions]  # (layers, n, 4)
    true, size = true_boxes[pairs.objects], scales[pairs.images]
    divisor = normaliser + _EPS
    giou = box_iou_terms(to_corners(found) * size, to_corners(true) * size)
    return (
        sigmoid_focal_loss(logits, targets).sum((1, 2, 3)) / divisor,
        _L1 * (found - true).abs().sum((1, 2)) / divisor,
        _GIOU * (1 - giou).sum(1) / divisor,
    )
