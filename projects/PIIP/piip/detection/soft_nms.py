"""Soft non-maximum suppression (arXiv 1704.04503)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor

__all__ = ["SoftNMS"]


@dataclass(frozen=True)
class SoftNMS:
    """The best box stays, and the scores of those of its class that overlap it fall; then the next best, ...

    Args:
        method: "linear", scores beyond `iou_threshold` fall by the factor 1 - IoU, or "gaussian", all fall by
            exp(-IoU^2 / sigma).
        iou_threshold: of "linear".
        sigma: of "gaussian".
        min_score: boxes whose score is not above it go away.

    Raises:
        ValueError: unknown method, or a sigma that is not positive.
    """

    method: Literal["linear", "gaussian"] = "linear"
    iou_threshold: float = 0.5
    sigma: float = 0.5
    min_score: float = 1e-3

    def __post_init__(self) -> None:
        if self.method not in ("linear", "gaussian"):
            raise ValueError(f"unknown method {self.method!r} of soft-NMS: expected 'linear' or 'gaussian'")
        if self.sigma <= 0:
            raise ValueError(f"sigma {self.sigma} of soft-NMS must be positive")

    def __call__(self, boxes: Tensor, scores: Tensor, classes: Tensor, limit: int) -> tuple[Tensor, Tensor]:
        """Choose among the boxes of one image.

        Args:
            boxes: ``(N, 4)``, (x1, y1, x2, y2).
            scores: ``(N,)``.
            classes: ``(N,)``; boxes of different classes do not touch one another.
            limit: how many to keep at most.

        Returns:
            Indices of those kept, ``(n,)``, and their scores, ``(n,)``, best first.
        """
        # up to `limit` steps on small tensors, each waiting for the one before: on the host
        device = boxes.device
        places, classes, left = Boxes(boxes.cpu().float()), classes.cpu(), scores.cpu().clone()
        kept: list[int] = []
        kept_scores: list[float] = []
        for _ in range(min(limit, len(left))):
            best = int(left.argmax())
            score = float(left[best])
            if score <= self.min_score:
                break
            kept.append(best)
            kept_scores.append(score)
            overlap = pairwise_iou(places[best], places)[0]
            left *= torch.where(classes == classes[best], self._decay(overlap), 1)
            left[best] = 0
        return (
            torch.tensor(kept, dtype=torch.int64, device=device),
            torch.tensor(kept_scores, dtype=scores.dtype, device=device),
        )

    def _decay(self, overlap: Tensor) -> Tensor:
        if self.method == "gaussian":
            return torch.exp(-(overlap**2) / self.sigma)
        return torch.where(overlap > self.iou_threshold, 1 - overlap, 1)
