"""DINO's losses: focal, L1 and generalised IoU for every layer, matched or known."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from .boxes import box_iou_terms, to_corners

__all__ = ["Pairs", "mean_over_processes", "set_losses"]

Pairs = Sequence[tuple[Tensor, Tensor]]
"""For each image, indices of predictions and of the objects they belong to."""

_ALPHA, _GAMMA = 0.25, 2.0
_L1, _GIOU = 5.0, 2.0
_EPS = torch.finfo(torch.float32).eps  # added to the number of objects, whatever the type


def mean_over_processes(number: float, like: Tensor) -> Tensor:
    """The mean of a number over all processes, at least 1, on the device of ``like``."""
    value = torch.as_tensor(float(number), dtype=like.dtype, device=like.device)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(value)
        value = value / dist.get_world_size()
    return value.clamp(min=1)


def _focal(logits: Tensor, targets: Tensor) -> Tensor:
    p = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    miss = p * (1 - targets) + (1 - p) * targets
    return (cross_entropy * (_ALPHA * targets + (1 - _ALPHA) * (1 - targets)) * miss**_GAMMA).sum()


def set_losses(
    logits: Tensor,
    boxes: Tensor,
    pairs: Pairs,
    true_boxes: Sequence[Tensor],
    labels: Sequence[Tensor],
    scales: Sequence[Tensor],
    normaliser: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses of one layer: of classes, of boxes (L1) and of boxes (generalised IoU in pixels), weighted.

    Args:
        logits: ``(B, Q, C)``; what is in no pair is background.
        boxes: ``(B, Q, 4)``, (cx, cy, w, h) fractions.
        pairs: see :data:`Pairs`.
        true_boxes, labels, scales: of each image, see :func:`piip.detection.dino.matching.match`.
        normaliser: the number of objects to divide by.
    """
    targets = torch.zeros_like(logits)
    chosen, wanted, scale = [], [], []
    for image, (predictions, objects) in enumerate(pairs):
        targets[image, predictions, labels[image][objects]] = 1
        chosen.append(boxes[image, predictions])
        wanted.append(true_boxes[image][objects])
        scale.append(scales[image].expand(len(objects), 4))
    found, true, size = torch.cat(chosen), torch.cat(wanted), torch.cat(scale)
    divisor = normaliser + _EPS
    giou = box_iou_terms(to_corners(found) * size, to_corners(true) * size)
    return (
        _focal(logits, targets) / divisor,
        _L1 * (found - true).abs().sum() / divisor,
        _GIOU * (1 - giou).sum() / divisor,
    )
