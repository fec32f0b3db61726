"""Detectron2's box arithmetic on tensors alone: what a graph of PyTorch operators can hold."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import nms

__all__ = ["Size", "anchors", "clip", "nonempty", "paste_masks", "suppressed", "suppressed_by_class"]

Size = tuple[int, int]
"""Height and width in pixels; symbols while a graph is made."""


def anchors(cells: Tensor, height: int, width: int, stride: int, offset: float) -> Tensor:
    """Anchors of a map, as Detectron2's `DefaultAnchorGenerator` places them, ``(h * w * A, 4)``.

    Args:
        cells: around the origin, ``(A, 4)``.
        height, width: of the map.
        stride: of the map in pixels.
        offset: where in a cell anchors lie, as a share of the stride.
    """
    y, x = (
        (torch.arange(n, dtype=cells.dtype, device=cells.device) + offset) * stride for n in (height, width)
    )
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(-1, 1, 2)
    return (grid.repeat(1, 1, 2) + cells).reshape(-1, 4)


def clip(boxes: Tensor, size: Size) -> Tensor:
    """Clip boxes ``(..., 4)``, (x1, y1, x2, y2), to the image."""
    height, width = size
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack(
        [x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height)], dim=-1
    )


def nonempty(boxes: Tensor, threshold: float = 0.0) -> Tensor:
    """Which boxes ``(N, 4)`` are wider and higher than a threshold."""
    return (boxes[:, 2:] - boxes[:, :2] > threshold).all(dim=1)


def _suppress(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Indices of the boxes that NMS keeps, best first, and of two dummy boxes past the end.

    torchvision tells a tracer that at least two boxes are kept, and the graph then requires it. Two
    dummy boxes with the lowest score, which overlap no other, make it true.
    """
    far = boxes.new_tensor([[-4.0, -4.0, -3.0, -3.0], [-2.0, -2.0, -1.0, -1.0]])
    worst = scores.new_full((2,), -torch.inf)
    return nms(torch.cat([boxes, far]), torch.cat([scores, worst]), threshold)


def suppressed(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Scores ``(N,)``; -inf for the boxes that NMS removes.

    The number of boxes kept is only known when a model runs. Keeping all ``N`` scores keeps that number
    out of the rest of the graph.

    Args:
        boxes: ``(N, 4)``, not negative.
        scores: ``(N,)``.
        threshold: IoU above which the box with the lower score is removed.
    """
    kept = _suppress(boxes, scores, threshold)
    survives = torch.zeros(boxes.shape[0] + 2, dtype=torch.bool, device=boxes.device)
    survives = survives.index_fill(0, kept, True)[:-2]
    return scores.masked_fill(~survives, -torch.inf)


def suppressed_by_class(boxes: Tensor, scores: Tensor, classes: Tensor, threshold: float) -> Tensor:
    """Indices of the boxes that NMS within each class keeps, best first.

    As torchvision does it for up to a thousand boxes: classes are moved apart so that none of their boxes
    meet.

    Args:
        boxes: ``(N, 4)``, not negative.
        scores, classes: ``(N,)``.
        threshold: IoU above which the box with the lower score is removed.
    """
    largest = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).max()  # there may be no box
    offsets = classes.to(boxes.dtype) * (largest + 1)
    kept = _suppress(boxes + offsets[:, None], scores, threshold)
    return kept[kept < boxes.shape[0]]


def paste_masks(masks: Tensor, boxes: Tensor, size: Size) -> Tensor:
    """Probabilities of masks in the frame of their boxes, at every pixel of the image, ``(N, H, W)``.

    Detectron2 samples bilinearly with zeros outside. That is separable: two matrix products, one over
    rows and one over columns, and no sampling grid.

    Args:
        masks: ``(N, M, M)``.
        boxes: ``(N, 4)``, (x1, y1, x2, y2) in pixels, none empty.
        size: of the image.
    """
    height, width = size
    rows = _hat(boxes[:, 1], boxes[:, 3], height, masks.shape[1])
    columns = _hat(boxes[:, 0], boxes[:, 2], width, masks.shape[2])
    return rows @ masks @ columns.transpose(1, 2)


def _hat(start: Tensor, end: Tensor, pixels: int, cells: int) -> Tensor:
    """Weights ``(N, pixels, cells)`` that interpolate linearly between the centres of cells."""
    centres = torch.arange(pixels, dtype=start.dtype, device=start.device) + 0.5
    places = (centres - start[:, None]) / (end - start)[:, None] * cells - 0.5
    distance = places[:, :, None] - torch.arange(cells, dtype=start.dtype, device=start.device)
    return (1 - distance.abs()).clamp(min=0)
