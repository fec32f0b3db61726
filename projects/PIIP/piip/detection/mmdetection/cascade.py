"""Cascade Mask R-CNN as mmdetection trains it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.modeling.roi_heads import CascadeROIHeads
from detectron2.modeling.roi_heads.roi_heads import select_foreground_proposals
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from .roi_heads import sample_proposals

__all__ = ["ReleasedCascadeROIHeads"]


class ReleasedCascadeROIHeads(CascadeROIHeads):
    """Detectron2's `CascadeROIHeads`, but

    - every stage has a mask head of its own, learns from a sample of its own, to which the objects are added
      anew, and hands its whole gradient to the maps;
    - its losses have a weight;
    - detections take the mean of the stages' logits, Detectron2's that of their probabilities, and masks the
      mean of all mask heads.

    Args:
        mask_heads: a mask head a stage; none for boxes only.
        stage_weights: of the losses of each stage.
        parts: what `CascadeROIHeads` takes.
    """

    def __init__(
        self,
        *,
        mask_heads: Sequence[nn.Module] = (),
        stage_weights: Sequence[float] = (1, 0.5, 0.25),
        **parts: Any,
    ) -> None:
        super().__init__(mask_head=nn.ModuleList(mask_heads), **parts)
        self.stage_weights = stage_weights

    def forward(
        self,
        images: Any,
        features: Mapping[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """As in `CascadeROIHeads`."""
        if not self.training:
            found: tuple[list[Instances], dict[str, Tensor]] = super().forward(images, features, proposals)
            return found
        assert targets is not None
        losses: dict[str, Tensor] = {}
        for stage, (matcher, weight) in enumerate(
            zip(self.proposal_matchers, self.stage_weights, strict=True)
        ):
            samples = sample_proposals(self, matcher, proposals, targets)
            predictions = self._run_stage([features[name] for name in self.box_in_features], samples, stage)
            of_stage = self.box_predictor[stage].losses(predictions, samples)
            if self.mask_on:
                chosen, _ = select_foreground_proposals(samples, self.num_classes)
                pooled = self._pool_masks(features, [sample.proposal_boxes for sample in chosen])
                of_stage |= self.mask_head[stage](pooled, chosen)
            losses |= {f"{name}_stage{stage}": weight * loss for name, loss in of_stage.items()}
            with torch.no_grad():
                boxes = self.box_predictor[stage].predict_boxes(predictions, samples)
            proposals = [_refined(sample, moved) for sample, moved in zip(samples, boxes, strict=True)]
        return proposals, losses

    def _run_stage(
        self, features: list[Tensor], proposals: list[Instances], stage: int
    ) -> tuple[Tensor, Tensor]:
        pooled = self.box_pooler(features, [found.proposal_boxes for found in proposals])
        predictions: tuple[Tensor, Tensor] = self.box_predictor[stage](self.box_head[stage](pooled))
        return predictions

    def _pool_masks(self, features: Mapping[str, Tensor], boxes: list[Boxes]) -> Tensor:
        pooled: Tensor = self.mask_pooler([features[name] for name in self.mask_in_features], boxes)
        return pooled

    def _forward_box(
        self, features: Mapping[str, Tensor], proposals: list[Instances], targets: None = None
    ) -> list[Instances]:
        """Detections, an image each; training does not come here."""
        maps = [features[name] for name in self.box_in_features]
        sizes = [found.image_size for found in proposals]
        scores, deltas = self._run_stage(maps, proposals, 0)
        logits = [scores]
        for stage in range(1, self.num_cascade_stages):
            boxes = self.box_predictor[stage - 1].predict_boxes((scores, deltas), proposals)
            proposals = self._create_proposals_from_boxes(boxes, sizes)
            scores, deltas = self._run_stage(maps, proposals, stage)
            logits.append(scores)
        mean = torch.stack(logits).mean(0)
        detections, _ = self.box_predictor[-1].inference((mean, deltas), proposals)
        found: list[Instances] = detections
        return found

    def _forward_mask(self, features: Mapping[str, Tensor], instances: list[Instances]) -> list[Instances]:
        """Detections with masks, an image each; training does not come here."""
        if not self.mask_on:
            return instances
        pooled = self._pool_masks(features, [found.pred_boxes for found in instances])
        masks = [[found.pred_masks for found in head(pooled, instances)] for head in self.mask_head]
        for found, of_heads in zip(instances, zip(*masks, strict=True), strict=True):
            found.pred_masks = torch.stack(of_heads).mean(0)
        return instances


def _refined(sample: Instances, boxes: Tensor) -> Instances:
    """What the next stage starts from: the boxes that one stage predicted, but for those of the objects."""
    moved = Boxes(boxes[~sample.is_object])
    moved.clip(sample.image_size)
    return Instances(sample.image_size, proposal_boxes=moved)
