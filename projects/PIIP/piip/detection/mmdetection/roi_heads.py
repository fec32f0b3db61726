"""Sampling of proposals by mmdetection's rules."""

from __future__ import annotations

import torch
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import ROIHeads, StandardROIHeads
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage

__all__ = ["ReleasedROIHeads", "sample_proposals"]


class ReleasedROIHeads(StandardROIHeads):
    """Detectron2's `StandardROIHeads`, learning from the proposals that :func:`sample_proposals` chooses."""

    def label_and_sample_proposals(
        self, proposals: list[Instances], targets: list[Instances]
    ) -> list[Instances]:
        """As in `ROIHeads`: proposals to learn from, with what they are matched to, an image each."""
        return sample_proposals(self, self.proposal_matcher, proposals, targets)


@torch.no_grad()
def sample_proposals(
    heads: ROIHeads, matcher: Matcher, proposals: list[Instances], targets: list[Instances]
) -> list[Instances]:
    """As `ROIHeads.label_and_sample_proposals`, but proposals are matched before the objects join them.

    So an object can take the proposal that overlaps it most, which otherwise its own box would be. The
    objects come first, each matched to itself.

    Args:
        heads: whose numbers of samples and classes count.
        matcher: of proposals and objects.
        proposals: an image each, with "proposal_boxes".
        targets: an image each, with "gt_boxes", "gt_classes" and more.

    Returns:
        The samples, an image each, with "proposal_boxes", "gt_classes" (the number of classes for
        background), "is_object" (whether the box is an object's own) and, where the image has objects, what
        `targets` hold.
    """
    samples, foreground = [], 0
    for found, truth in zip(proposals, targets, strict=True):
        boxes: Boxes = found.proposal_boxes
        matches, labels = matcher(pairwise_iou(truth.gt_boxes, boxes))
        if heads.proposal_append_gt:
            boxes = Boxes.cat([truth.gt_boxes, boxes])
            matches = torch.cat([torch.arange(len(truth), device=matches.device), matches])
            labels = torch.cat([labels.new_ones(len(truth)), labels])
        chosen, classes = heads._sample_proposals(matches, labels, truth.gt_classes)
        sample = Instances(found.image_size, proposal_boxes=boxes[chosen], gt_classes=classes)
        sample.is_object = chosen < len(boxes) - len(found)
        if len(truth):
            for name, value in truth.get_fields().items():
                if name.startswith("gt_") and not sample.has(name):
                    sample.set(name, value[matches[chosen]])
        samples.append(sample)
        foreground += int((classes != heads.num_classes).sum())
    storage = get_event_storage()
    storage.put_scalar("roi_head/num_fg_samples", foreground / len(samples))
    storage.put_scalar(
        "roi_head/num_bg_samples", sum(map(len, samples)) / len(samples) - foreground / len(samples)
    )
    return samples
