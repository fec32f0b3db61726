"""Released Mask R-CNN detectors: mmdetection's names, and Detectron2's with the released neck."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from .backbone import backbone_rules
from .released import ReleasedFormat
from .rules import Rule

__all__ = ["MASK_RCNN", "convert_detector", "is_official", "to_official_detector"]

_HEADS: tuple[Rule, ...] = (
    ("neck.lateral_convs.{i}.conv.", "backbone.fpn_lateral{i+2}."),
    ("neck.fpn_convs.{i}.conv.", "backbone.fpn_output{i+2}."),
    ("rpn_head.rpn_conv.", "proposal_generator.rpn_head.conv."),
    ("rpn_head.rpn_cls.", "proposal_generator.rpn_head.objectness_logits."),
    ("rpn_head.rpn_reg.", "proposal_generator.rpn_head.anchor_deltas."),
    ("roi_head.bbox_head.shared_fcs.{i}.", "roi_heads.box_head.fc{i+1}."),
    ("roi_head.bbox_head.fc_cls.", "roi_heads.box_predictor.cls_score."),
    ("roi_head.bbox_head.fc_reg.", "roi_heads.box_predictor.bbox_pred."),
    ("roi_head.mask_head.convs.{i}.conv.", "roi_heads.mask_head.mask_fcn{i+1}."),
    ("roi_head.mask_head.upsample.", "roi_heads.mask_head.deconv."),
    ("roi_head.mask_head.conv_logits.", "roi_heads.mask_head.predictor."),
)


def _rules(state: Mapping[str, Tensor]) -> list[Rule]:
    return [*_HEADS, *backbone_rules(state, "backbone.", "backbone.bottom_up.")]


MASK_RCNN = ReleasedFormat("Mask R-CNN", _rules, ("neck.", "roi_head.", "rpn_head.", "bbox_head."), ("",))
convert_detector, to_official_detector = MASK_RCNN.convert, MASK_RCNN.to_official


def is_official(names: Collection[str]) -> bool:
    """Whether tensor names are those of a released detector rather than of a Detectron2 model."""
    return MASK_RCNN.is_released(names)
