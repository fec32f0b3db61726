"""Detectron2's Mask R-CNN and its cascade, from image to masks, as functions of tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.layers import ROIAlign
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import CascadeROIHeads, FastRCNNOutputLayers, StandardROIHeads
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from torch import Tensor, nn

from ..detection.mmdetection.roi_heads import ReleasedROIHeads
from ..detection.mmdetection.rpn import ReleasedRPN
from .boxes import Size, anchors, clip, nonempty, paste_masks, suppressed, suppressed_by_class
from .errors import ExportError, expect
from .images import own_size, pad

__all__ = ["ExportableRCNN"]

_MASK_THRESHOLD = 0.5  # Detectron2's
_LEVEL_EPS = 1e-8  # likewise


class ExportableRCNN(nn.Module):
    """Inference of a Detectron2 R-CNN on one image, as functions of tensors without `Instances`.

    The modules are the detector's own. The code between them repeats Detectron2's inference with the same
    results. Where Detectron2 removes rows, they get a score of -inf here, so that the number of remaining
    rows does not enter the graph.

    Args:
        model: the detector: one box head or a cascade, with masks or without.

    Raises:
        ExportError: a module computes something that is not implemented here.
    """

    def __init__(self, model: GeneralizedRCNN) -> None:
        super().__init__()
        _check(model)
        self.model = model
        self.is_cascade = isinstance(model.roi_heads, CascadeROIHeads)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what :meth:`forward` returns."""
        return ("boxes", "scores", "classes", *(["masks"] if self.model.roi_heads.mask_on else []))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Detections, best first.

        Args:
            images: one, ``(1, 3, H, W)``, in the model's channel order, 0 to 255.

        Returns:
            "boxes" ``(N, 4)``, (x1, y1, x2, y2) in pixels of the input; "scores" ``(N,)``; "classes"
            ``(N,)`` int64; with a mask head "masks" ``(N, H, W)`` bool.
        """
        model, size = self.model, own_size(images)
        constraints = model.backbone.padding_constraints
        padded = pad(
            (images - model.pixel_mean) / model.pixel_std,
            constraints.get("size_divisibility", model.backbone.size_divisibility),
            constraints.get("square_size", 0),
        )
        maps: Mapping[str, Tensor] = model.backbone(padded)
        proposals, objectness = self.propose(maps, size)
        boxes, scores = self.classify(maps, proposals, size)
        scores = scores.masked_fill(objectness[:, None] == -torch.inf, -torch.inf)
        boxes, scores, classes = self.select(boxes, scores, size)
        found = {"boxes": boxes, "scores": scores, "classes": classes}
        if model.roi_heads.mask_on:
            found["masks"] = self.masks(maps, boxes, classes, size)
        return found

    def propose(self, maps: Mapping[str, Tensor], size: Size) -> tuple[Tensor, Tensor]:
        """Proposals ``(P, 4)`` and their logits ``(P,)``, best first; -inf where there is none."""
        generator = self.model.proposal_generator
        levels = [maps[name] for name in generator.in_features]
        objectness, deltas = generator.rpn_head(levels)
        placing = generator.anchor_generator
        before, after = generator.pre_nms_topk[False], generator.post_nms_topk[False]
        boxes, scores = [], []
        for logits, moves, cells, stride in zip(
            objectness, deltas, placing.cell_anchors, placing.strides, strict=True
        ):
            height, width = logits.shape[2:]
            moves = moves.reshape(-1, 4, height, width).permute(2, 3, 0, 1).reshape(-1, 4)
            logits = logits.permute(0, 2, 3, 1).flatten()
            logits, best = logits.topk(torch.sym_min(logits.shape[0], before))
            placed = anchors(cells, height, width, stride, placing.offset)
            proposed = generator.box2box_transform.apply_deltas(moves[best], placed[best])
            finite = proposed.isfinite().all(dim=1) & logits.isfinite()
            proposed = clip(proposed.masked_fill(~finite[:, None], 0), size)
            logits = logits.masked_fill(~nonempty(proposed, generator.min_box_size), -torch.inf)
            boxes.append(proposed)
            scores.append(suppressed(proposed, logits, generator.nms_thresh))
        score, best = torch.cat(scores).topk(torch.sym_min(sum(x.shape[0] for x in scores), after))
        return torch.cat(boxes)[best], score

    def classify(self, maps: Mapping[str, Tensor], proposals: Tensor, size: Size) -> tuple[Tensor, Tensor]:
        """Boxes ``(P, R, 4)``, R the number of regressors, and probabilities of the classes ``(P, K)``."""
        heads = self.model.roi_heads
        levels = [maps[name] for name in heads.box_in_features]
        stages = (
            zip(heads.box_head, heads.box_predictor, strict=True)
            if self.is_cascade
            else ((heads.box_head, heads.box_predictor),)
        )
        probabilities: list[Tensor] = []
        boxes = proposals
        for number, (head, predictor) in enumerate(stages):
            if number:
                boxes = clip(boxes, size)
            logits, moves = predictor(head(pool(heads.box_pooler, levels, boxes)))
            boxes = predictor.box2box_transform.apply_deltas(moves, boxes)
            probabilities.append(logits.sigmoid() if predictor.use_sigmoid_ce else logits.softmax(dim=-1))
        mean = torch.stack(probabilities).sum(0) * (1.0 / len(probabilities))
        finite = boxes.isfinite().all(dim=1) & mean.isfinite().all(dim=1)
        mean = mean[:, :-1].masked_fill(~finite[:, None], -torch.inf)
        return boxes.masked_fill(~finite[:, None], 0).unflatten(1, (-1, 4)), mean

    def select(self, boxes: Tensor, scores: Tensor, size: Size) -> tuple[Tensor, Tensor, Tensor]:
        """Detections: boxes ``(N, 4)``, scores and classes ``(N,)``, best first."""
        predictor = self.model.roi_heads.box_predictor
        predictor = predictor[-1] if self.is_cascade else predictor
        row, classes = (scores > predictor.test_score_thresh).nonzero().unbind(1)
        scores = scores[row, classes]
        boxes = clip(boxes[row, classes if boxes.shape[1] > 1 else 0], size)
        kept = suppressed_by_class(boxes, scores, classes, predictor.test_nms_thresh)
        if predictor.test_topk_per_image >= 0:
            kept = kept[: predictor.test_topk_per_image]
        kept = kept[nonempty(boxes[kept])]
        return boxes[kept], scores[kept], classes[kept]

    def masks(self, maps: Mapping[str, Tensor], boxes: Tensor, classes: Tensor, size: Size) -> Tensor:
        """Masks of detections at the size of the image, ``(N, H, W)`` bool."""
        heads = self.model.roi_heads
        levels = [maps[name] for name in heads.mask_in_features]
        logits = heads.mask_head.layers(pool(heads.mask_pooler, levels, boxes))
        if logits.shape[1] > 1:
            logits = logits.gather(1, classes[:, None, None, None].expand(-1, 1, *logits.shape[2:]))
        return paste_masks(logits[:, 0].sigmoid(), boxes, size) >= _MASK_THRESHOLD


def pool(pooler: ROIPooler, levels: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """Features ``(N, C, h, w)`` of boxes ``(N, 4)`` of one image, each from the level of its size."""
    rois = torch.cat([torch.zeros_like(boxes[:, :1]), boxes], dim=1)
    if len(levels) == 1:
        return pooler.level_poolers[0](levels[0], rois)
    sides = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).sqrt()
    level = (pooler.canonical_level + (sides / pooler.canonical_box_size + _LEVEL_EPS).log2()).floor()
    level = level.clamp(pooler.min_level, pooler.max_level) - pooler.min_level
    places = [(level == number).nonzero()[:, 0] for number in range(len(levels))]
    pooled = [
        align(x, rois[place]) for align, x, place in zip(pooler.level_poolers, levels, places, strict=True)
    ]
    features = torch.cat(pooled)
    return torch.empty_like(features).index_copy(0, torch.cat(places), features)


def _check(model: GeneralizedRCNN) -> None:
    """Raise an ExportError for a module whose computation is not implemented here."""
    generator, heads = model.proposal_generator, model.roi_heads
    expect("proposal_generator", generator, RPN, ReleasedRPN)
    expect("proposal_generator.anchor_generator", generator.anchor_generator, DefaultAnchorGenerator)
    expect("proposal_generator.box2box_transform", generator.box2box_transform, Box2BoxTransform)
    expect("roi_heads", heads, StandardROIHeads, ReleasedROIHeads, CascadeROIHeads)
    if heads.keypoint_on:
        raise ExportError("roi_heads.keypoint_head cannot be exported: only boxes and masks can")
    several = isinstance(heads, CascadeROIHeads)
    for predictor in heads.box_predictor if several else [heads.box_predictor]:
        expect("roi_heads.box_predictor", predictor, FastRCNNOutputLayers)
        expect("roi_heads.box_predictor.box2box_transform", predictor.box2box_transform, Box2BoxTransform)
    poolers: dict[str, Any] = {"roi_heads.box_pooler": heads.box_pooler}
    if heads.mask_on:
        expect("roi_heads.mask_head", heads.mask_head, MaskRCNNConvUpsampleHead)
        if heads.mask_pooler is None:
            raise ExportError("roi_heads.mask_head cannot be exported: it has no pooler")
        poolers["roi_heads.mask_pooler"] = heads.mask_pooler
    for name, pooler in poolers.items():
        expect(name, pooler, ROIPooler)
        for align in pooler.level_poolers:
            expect(f"{name}.level_poolers", align, ROIAlign)
