"""Which object an anchor or a proposal is for."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.layers import nonzero_tuple
from detectron2.modeling.matcher import Matcher
from torch import Tensor

__all__ = ["MaxIoUMatcher"]


class MaxIoUMatcher(Matcher):
    """Detectron2's `Matcher`, with mmdetection's rule for the best boxes of an object.

    An object takes *all* boxes that overlap it most, even where they overlap another object more; of objects
    that take the same box, the last one has it. But an object that no box overlaps by `min_overlap` takes
    none, where Detectron2's low-quality matches have no such bound.

    Args:
        thresholds, labels: as in Detectron2's `Matcher`.
        min_overlap: IoU from which on an object takes its best boxes.
    """

    def __init__(self, thresholds: Sequence[float], labels: Sequence[int], min_overlap: float) -> None:
        super().__init__(list(thresholds), list(labels), allow_low_quality_matches=False)
        self.min_overlap = min_overlap

    def __call__(self, match_quality_matrix: Tensor) -> tuple[Tensor, Tensor]:
        """From overlaps ``(objects, boxes)`` to the object ``(boxes,)`` int64 and label ``(boxes,)`` int8."""
        matches, labels = super().__call__(match_quality_matrix)
        if match_quality_matrix.numel():
            best = match_quality_matrix.amax(dim=1, keepdim=True)
            objects, boxes = nonzero_tuple((match_quality_matrix == best) & (best >= self.min_overlap))
            matches.scatter_reduce_(0, boxes, objects, "amax", include_self=False)
            labels[boxes] = 1
        return matches, labels
