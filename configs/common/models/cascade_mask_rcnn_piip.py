"""Cascade Mask R-CNN on a PIIP backbone, with the losses and proposals of mmdetection's defaults."""

from ..cascade import use_cascade
from .mask_rcnn_piip import model

use_cascade(model)
for _predictor in model.roi_heads.box_predictors:
    _predictor.smooth_l1_beta = 1.0
model.proposal_generator.smooth_l1_beta = 1 / 9
model.proposal_generator.post_nms_topk = (2000, 1000)
