"""Bipartite matching of queries and objects, for all layers and images at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .boxes import box_iou_terms, to_corners
from .criterion import Pairs

__all__ = ["match"]

_CLASS, _L1, _GIOU = 2.0, 5.0, 2.0
_ALPHA, _GAMMA, _EPS = 0.25, 2.0, 1e-12


def _costs(logits: Tensor, boxes: Tensor, true_boxes: Tensor, labels: Tensor, scales: Tensor) -> Tensor:
    """``(layers, B, Q, n)``: the cost of assigning an object of its image to a query; see :func:`match`."""
    p = logits.sigmoid()
    positive = -(p + _EPS).log() * _ALPHA * (1 - p) ** _GAMMA
    negative = -(1 - p + _EPS).log() * (1 - _ALPHA) * p**_GAMMA
    classes = (positive - negative).gather(-1, labels[:, None].expand(*p.shape[:3], -1))
    l1 = (boxes[..., None, :] - true_boxes[:, None]).abs().sum(-1)
    pixels = scales[:, None, None]
    giou = box_iou_terms(to_corners(boxes)[..., None, :] * pixels, to_corners(true_boxes)[:, None] * pixels)
    return _CLASS * classes + _L1 * l1 - _GIOU * giou


@torch.no_grad()
def match(
    logits: Tensor, boxes: Tensor, true_boxes: Sequence[Tensor], labels: Sequence[Tensor], scales: Tensor
) -> Pairs:
    """Assign objects to queries, each to one, at least total cost.

    The costs of all layers and images reach the host in one transfer, and so does the result the device.

    Args:
        logits: ``(layers, B, Q, C)``.
        boxes: ``(layers, B, Q, 4)``, (cx, cy, w, h) fractions.
        true_boxes, labels: of each image, ``(n, 4)`` likewise and ``(n,)``.
        scales: (w, h, w, h) of each image in pixels, ``(B, 4)``.

    Returns:
        Queries and the objects they are to find.

    Raises:
        FloatingPointError: a cost is not finite: the model has diverged.
    """
    padded_boxes, padded_labels = (
        pad_sequence(list(values), batch_first=True) for values in (true_boxes, labels)
    )
    host = _costs(logits, boxes, padded_boxes, padded_labels, scales).double().cpu().numpy()
    if not np.isfinite(host).all():
        raise FloatingPointError("the costs of matching queries and objects are not finite")
    pairs: list[list[npt.NDArray[np.int64]]] = [[] for _ in host]
    start = 0
    for image, of_image in enumerate(true_boxes):
        for layer, costs in enumerate(host[:, image, :, : len(of_image)]):
            queries, objects = linear_sum_assignment(costs)
            pairs[layer].append(np.stack([np.full_like(queries, image), queries, objects + start]))
        start += len(of_image)
    # (layers, 3, n): every layer has as many
    joined = np.stack([np.concatenate(of_layer, axis=1) for of_layer in pairs])
    # from page-locked memory, so that the host need not wait for the copy
    on_host = torch.from_numpy(joined)
    if logits.is_cuda:
        on_host = on_host.pin_memory()
    return Pairs(*on_host.to(logits.device, non_blocking=True).unbind(1))
