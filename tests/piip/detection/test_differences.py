"""Detectron2's Mask R-CNN, configured here, decides as mmdetection's does: docs/differences.md."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from ... import require

require.detectron2()

from detectron2.config import LazyConfig, instantiate
from detectron2.data import MetadataCatalog
from detectron2.layers import ROIAlign
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.poolers import assign_boxes_to_levels
from detectron2.structures import Boxes

from piip.engine.backbone import piip_backbone

from ..models import tiny_piip

CONFIG = Path(__file__).parents[3] / "configs/COCO/mask_rcnn_piip_tsb_1120_896_448_1x.py"


@pytest.fixture(scope="module")
def cfg() -> Any:
    return LazyConfig.load(str(CONFIG))


def test_anchors(cfg: Any) -> None:
    """At (x, y), stride s: centre (x s, y s), area (8 s)^2, height / width 1/2, 1, 2, in that order."""
    generator = instantiate(cfg.model.proposal_generator.anchor_generator)
    strides = (4, 8, 16, 32, 64)
    maps = [torch.zeros(1, 1, 3, 5) for _ in strides]
    for stride, anchors in zip(strides, generator(maps), strict=True):
        expected = []
        for y in range(3):
            for x in range(5):
                for ratio in (0.5, 1.0, 2.0):
                    width, height = 8 * stride / math.sqrt(ratio), 8 * stride * math.sqrt(ratio)
                    left, top = x * stride - width / 2, y * stride - height / 2
                    expected.append([left, top, left + width, top + height])
        torch.testing.assert_close(
            anchors.tensor, torch.tensor(expected), rtol=0, atol=1e-4
        )  # float32, 512 px


def test_box_coding(cfg: Any) -> None:
    """Deltas are differences of centres over the size, and logarithms of sizes, over .1, .1, .2, .2."""
    transform = instantiate(cfg.model.roi_heads.box_predictor.box2box_transform)
    source, target = torch.tensor([[10.0, 20, 50, 100]]), torch.tensor([[14.0, 12, 74, 132]])
    deltas = [(44 - 30) / 40 / 0.1, (72 - 60) / 80 / 0.1, math.log(60 / 40) / 0.2, math.log(120 / 80) / 0.2]
    torch.testing.assert_close(transform.get_deltas(source, target), torch.tensor([deltas]))
    assert transform.scale_clamp == pytest.approx(math.log(1000 / 16))
    assert cfg.model.proposal_generator.box2box_transform.weights == [1.0] * 4
    for losses in (cfg.model.proposal_generator, cfg.model.roi_heads.box_predictor):
        assert (
            losses.get("smooth_l1_beta", 0.0) == 0.0
            and losses.get("box_reg_loss_type", "smooth_l1") == "smooth_l1"
        )


def test_roi_levels() -> None:
    """Level 0 (stride 4) up to a scale of 112 px, the last from 448 px on."""
    scales = [10, 111, 112, 113, 223, 225, 447, 449, 2000]
    boxes = [Boxes(torch.tensor([[0.0, 0, scale, scale] for scale in scales]))]
    expected = [min(max(math.floor(math.log2(scale / 56 + 1e-6)), 0), 3) for scale in scales]
    assert assign_boxes_to_levels(boxes, 2, 5, 224, 4).tolist() == expected


def test_roi_align(cfg: Any) -> None:
    for pooler, size in ((cfg.model.roi_heads.box_pooler, 7), (cfg.model.roi_heads.mask_pooler, 14)):
        built = instantiate(pooler)
        assert built.canonical_box_size == 224 and built.canonical_level == 4
        for level, stride in zip(built.level_poolers, (4, 8, 16, 32), strict=True):
            assert isinstance(level, ROIAlign)
            assert (level.output_size, level.sampling_ratio, level.aligned) == ((size, size), 0, True)
            assert level.spatial_scale == 1 / stride


def test_test_settings(cfg: Any) -> None:
    with torch.device("meta"):
        model = instantiate(cfg.model)
    predictor, rpn = model.roi_heads.box_predictor, model.proposal_generator
    assert (predictor.test_score_thresh, predictor.test_nms_thresh) == (0.05, 0.5)
    assert predictor.test_topk_per_image == 100
    assert (rpn.pre_nms_topk, rpn.post_nms_topk, rpn.nms_thresh) == (
        {True: 2000, False: 1000},
        {True: 1000, False: 1000},
        0.7,
    )
    assert (model.roi_heads.batch_size_per_image, model.roi_heads.positive_fraction) == (512, 0.25)
    assert (rpn.batch_size_per_image, rpn.positive_fraction) == (256, 0.5)
    assert rpn.anchor_matcher.thresholds[1:-1] == [0.3, 0.7] and rpn.anchor_boundary_thresh < 0


def test_normalisation_and_padding(cfg: Any) -> None:
    """White RGB becomes 1, then zeros fill up to multiples of 224 at the bottom and right."""

    class Padded(nn.Module):
        size_divisibility = cfg.model.backbone.size_divisibility
        padding_constraints: ClassVar[dict[str, int]] = {}

    model = GeneralizedRCNN(
        backbone=Padded(),
        proposal_generator=nn.Identity(),
        roi_heads=nn.Identity(),
        pixel_mean=cfg.model.pixel_mean,
        pixel_std=cfg.model.pixel_std,
        input_format=cfg.model.input_format,
    )
    images = model.preprocess_image([{"image": torch.full((3, 672, 1007), 255, dtype=torch.uint8)}])
    assert images.tensor.shape == (1, 3, 672, 1120) and images.image_sizes == [(672, 1007)]
    assert images.tensor[..., :1007].eq(1).all() and images.tensor[..., 1007:].eq(0).all()
    assert model.input_format == "RGB"


def test_backbone_asks_for_that_padding(cfg: Any) -> None:
    backbone = piip_backbone(tiny_piip(branch={"patch_size": 16}), neck="released", size_divisibility=224)
    assert backbone.size_divisibility == 224
    assert backbone.padding_constraints == {"size_divisibility": 224, "square_size": 0}


def test_class_order() -> None:
    """Contiguous ids follow COCO's own, gaps closed: 1 is the first, 90 the eightieth."""
    ids = MetadataCatalog.get("coco_2017_val").thing_dataset_id_to_contiguous_id
    assert list(ids.values()) == list(range(80)) and list(ids) == sorted(ids)
    assert MetadataCatalog.get("coco_2017_val").thing_classes[0] == "person"
