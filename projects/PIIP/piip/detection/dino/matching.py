"""Which query is to find which object: the cheapest assignment, for all layers and images at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from .boxes import box_iou_terms, to_corners

__all__ = ["match"]

_CLASS, _L1, _GIOU = 2.0, 5.0, 2.0
_ALPHA, _GAMMA, _EPS = 0.25, 2.0, 1e-12


def _costs(logits: Tensor, boxes: Tensor, true_boxes: Tensor, labels: Tensor, scale: Tensor) -> Tensor:
    """``(layers, Q, n)`` from logits ``(layers, Q, C)`` and boxes ``(layers, Q, 4)`` of one image."""
    p = logits.sigmoid()
    positive = -(p + _EPS).log() * _ALPHA * (1 - p) ** _GAMMA
    negative = -(1 - p + _EPS).log() * (1 - _ALPHA) * p**_GAMMA
    classes = (positive - negative)[..., labels]
    l1 = (boxes[:, :, None] - true_boxes).abs().sum(-1)
    giou = box_iou_terms((to_corners(boxes) * scale)[:, :, None], to_corners(true_boxes) * scale)
    return _CLASS * classes + _L1 * l1 - _GIOU * giou


@torch.no_grad()
def match(
    logits: Tensor,
    boxes: Tensor,
    true_boxes: Sequence[Tensor],
    labels: Sequence[Tensor],
    scales: Sequence[Tensor],
) -> list[list[tuple[Tensor, Tensor]]]:
    """Assign objects to queries, each to one, at least total cost.

    The costs of all layers and images reach the host in one transfer.

    Args:
        logits: ``(layers, B, Q, C)``.
        boxes: ``(layers, B, Q, 4)``, (cx, cy, w, h) fractions.
        true_boxes, labels: of each image, ``(n, 4)`` likewise and ``(n,)``.
        scales: (w, h, w, h) of each image in pixels.

    Returns:
        For each layer and image, indices of queries and of the objects they are to find.

    Raises:
        FloatingPointError: a cost is not finite: the model has diverged.
    """
    shapes = [(len(logits), logits.shape[2], len(b)) for b in true_boxes]
    parts = [
        _costs(logits[:, i], boxes[:, i], true_boxes[i], labels[i], scales[i]).flatten()
        for i in range(len(true_boxes))
    ]
    host = torch.cat(parts).double().cpu()
    if not torch.isfinite(host).all():
        raise FloatingPointError("the costs of matching queries and objects are not finite")
    costs = [
        part.view(shape).numpy()
        for part, shape in zip(host.split([len(p) for p in parts]), shapes, strict=True)
    ]
    device = logits.device
    matched = []
    for layer in range(len(logits)):
        pairs = [linear_sum_assignment(cost[layer]) for cost in costs]
        matched.append(
            [(torch.as_tensor(q, device=device), torch.as_tensor(o, device=device)) for q, o in pairs]
        )
    return matched
