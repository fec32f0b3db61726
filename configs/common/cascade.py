"""Cascade R-CNN: three box heads, each refining the boxes of the one before."""

from copy import deepcopy
from typing import Any, Literal

from detectron2.config import LazyCall as L
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import CascadeROIHeads
from omegaconf import OmegaConf

from piip.detection.mmdetection.cascade import ReleasedCascadeROIHeads

# (weights of x and y, of width and height): the inverses of mmdetection's standard deviations
# (0.1, 0.2), (0.05, 0.1) and (0.033, 0.067), and the overlap from which a proposal is an object
_STAGES = (((10, 5), 0.5), ((20, 10), 0.6), ((30, 15), 0.7))


def use_cascade(model: Any, cascade: Literal["detectron2", "mmdetection"] = "detectron2") -> None:
    """Give a Mask R-CNN a cascade, three copies of the box head that it has, or a cascade the other heads.

    Boxes are regressed for all classes at once. Detectron2's `CascadeROIHeads` have one mask head,
    `ReleasedCascadeROIHeads` one a stage: those of mmdetection, which the paper's detector was trained with.
    """
    heads = model.roi_heads
    if "box_heads" not in heads:
        box_head, predictor = heads.pop("box_head"), heads.pop("box_predictor")
        del heads["proposal_matcher"]
        predictor.cls_agnostic_bbox_reg = True
        predictor.num_classes = "${...num_classes}"  # one level deeper: predictors are a list
        heads._target_ = CascadeROIHeads
        heads.box_heads = [deepcopy(box_head) for _ in _STAGES]
        heads.box_predictors = [deepcopy(predictor) for _ in _STAGES]
        heads.proposal_matchers = []
        for stage, ((xy, wh), overlap) in enumerate(_STAGES):
            heads.box_predictors[stage].box2box_transform = L(Box2BoxTransform)(weights=(xy, xy, wh, wh))
            heads.proposal_matchers.append(
                L(Matcher)(thresholds=[overlap], labels=[0, 1], allow_low_quality_matches=False)
            )
    if cascade == "mmdetection":
        heads._target_ = ReleasedCascadeROIHeads
        mask_head = heads.pop("mask_head")
        if OmegaConf.is_interpolation(mask_head, "num_classes"):
            mask_head.num_classes = "${...num_classes}"
        heads.mask_heads = [deepcopy(mask_head) for _ in _STAGES]
