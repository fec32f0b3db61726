"""DINO's box format: centre and size as fractions of the image, and their logits."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torchvision.ops import box_convert

__all__ = ["box_iou_terms", "inverse_sigmoid", "to_centre", "to_corners"]

_EPS = 1e-3  # of every inverse sigmoid in DINO
_AREA_EPS = 1e-6


to_corners = partial(box_convert, in_fmt="cxcywh", out_fmt="xyxy")
"""``(..., 4)`` of (cx, cy, w, h) to (x1, y1, x2, y2)."""

to_centre = partial(box_convert, in_fmt="xyxy", out_fmt="cxcywh")
"""``(..., 4)`` of (x1, y1, x2, y2) to (cx, cy, w, h)."""


def inverse_sigmoid(x: Tensor) -> Tensor:
    """Logits of fractions, clamped to those of 0.001 and 0.999; gradients end where the clamp acts."""
    x = x.clamp(0, 1)
    return (x.clamp(min=_EPS) / (1 - x).clamp(min=_EPS)).log()


def box_iou_terms(a: Tensor, b: Tensor) -> Tensor:
    """Generalised intersection over union of boxes (x1, y1, x2, y2), broadcast over the leading axes.

    Areas are clamped to at least 1e-6.
    """
    overlap = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=0)
    intersection = overlap.prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - intersection
    union, enclosing = union.clamp(min=_AREA_EPS), hull.prod(-1).clamp(min=_AREA_EPS)
    return intersection / union - (enclosing - union) / enclosing
