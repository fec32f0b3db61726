"""The proposals' losses, by mmdetection's rules."""

from __future__ import annotations

import torch
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor

__all__ = ["ReleasedRPN"]


class ReleasedRPN(RPN):
    """Detectron2's `RPN`, but in training

    - an anchor of a cell beyond an image's own padding, which a larger image in the batch adds, is ignored;
    - losses are divided by the anchors that count, at least one positive and one negative an image, not by
      the number that should be sampled.

    Attributes:
        size_divisibility: what a side of an image is padded to a multiple of; `ReleasedRCNN` sets it.
    """

    size_divisibility = 1

    @torch.no_grad()
    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """As in `RPN`: labels (1, 0 or -1 for ignored) and matched boxes of all anchors, an image each."""
        every = Boxes.cat(anchors)
        corners = self._cell_corners(anchors)
        labels, matched_boxes = [], []
        for truth in gt_instances:
            padded = [
                -(-side // self.size_divisibility) * self.size_divisibility for side in truth.image_size
            ]
            # strides are whole pixels: half of one keeps away from rounding
            takes_part = (corners < corners.new_tensor(padded[::-1]) - 0.5).all(dim=1)
            if self.anchor_boundary_thresh >= 0:
                takes_part &= every.inside_box(truth.image_size, self.anchor_boundary_thresh)
            matches, found = self.anchor_matcher(pairwise_iou(truth.gt_boxes, every[takes_part]))
            label = found.new_full((len(every),), -1)
            label[takes_part] = found
            boxes = torch.zeros_like(every.tensor)
            if len(truth):
                boxes[takes_part] = truth.gt_boxes.tensor[matches]
            labels.append(self._subsample_labels(label))
            matched_boxes.append(boxes)
        return labels, matched_boxes

    def _cell_corners(self, anchors: list[Boxes]) -> Tensor:
        """Where the cell of each anchor starts, ``(R, 2)``, x before y, in pixels."""
        placing = self.anchor_generator
        return torch.cat(
            [
                level.get_centers() - placing.offset * stride
                for level, stride in zip(anchors, placing.strides, strict=True)
            ]
        )

    def losses(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
    ) -> dict[str, Tensor]:
        """As in `RPN`."""
        losses = super().losses(anchors, pred_objectness_logits, gt_labels, pred_anchor_deltas, gt_boxes)
        labels = torch.stack(gt_labels)
        counted = sum((labels == kind).sum(dim=1).clamp(min=1).sum() for kind in (0, 1))
        divisor = self.batch_size_per_image * len(gt_labels)  # Detectron2's
        return {name: loss * (divisor / counted) for name, loss in losses.items()}
