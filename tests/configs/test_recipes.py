"""Cascade Mask R-CNN and ViTDet's recipe: what they build, and what they cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from .. import require
from ..piip.tiny_config import tiny_config

require.detectron2()

from detectron2.config import LazyConfig, instantiate
from detectron2.modeling.roi_heads import CascadeROIHeads
from detectron2.utils.events import EventStorage

from piip.engine.data.loader import TrainLoader
from piip.engine.train import build_model
from piip.measure.cost import detector_cost

FOLDER = Path(__file__).parents[2] / "configs" / "COCO"
CASCADES = sorted(FOLDER.glob("cascade_*.py"))
VITDET = sorted((FOLDER / "vitdet_recipe").glob("*.py"))
QUICK = FOLDER.parent / "quick/cascade_mask_rcnn_piip_128_96_64_shapes.py"


def build(path: Path) -> tuple[Any, Any]:
    cfg = LazyConfig.load(str(path))
    with torch.device("meta"):
        return cfg, instantiate(cfg.model)


@pytest.mark.parametrize("path", CASCADES, ids=lambda path: path.stem)
def test_cascade_heads_are_mmdetections(path: Path) -> None:
    """Overlaps, deviations, one regression for all classes, 80 classes and background."""
    cfg, detector = build(path)
    heads = detector.roi_heads
    assert isinstance(heads, CascadeROIHeads)
    assert [matcher.thresholds[1] for matcher in heads.proposal_matchers] == [0.5, 0.6, 0.7]
    deviations = [(0.1, 0.2), (0.05, 0.1), (0.033, 0.067)]  # of x and y, of width and height
    for predictor, (xy, wh) in zip(heads.box_predictor, deviations, strict=True):
        weights = predictor.box2box_transform.weights
        # mmdetection rounds 1/30 to 0.033 and 1/15 to 0.067
        assert weights == pytest.approx((1 / xy, 1 / xy, 1 / wh, 1 / wh), rel=0.011)
        assert (predictor.bbox_pred.out_features, predictor.cls_score.out_features) == (4, 81)
        assert predictor.smooth_l1_beta == 1
    assert detector.proposal_generator.post_nms_topk == {True: 2000, False: 1000}
    epochs = 36 if path.stem.endswith("3x") else 12
    assert cfg.train.max_iter == epochs * 7330
    multiplier = instantiate(cfg.lr_multiplier)
    assert multiplier((epochs * 3 // 4 - 1 / 7330) / epochs if epochs == 36 else 0.5) == pytest.approx(1)
    assert multiplier(1 - 1e-4) == pytest.approx(0.01)


def test_cascade_costs_two_more_box_heads() -> None:
    """In closed form: 1000 proposals through 256x7x7 -> 1024 -> 1024 -> 81 classes and 4 numbers, thrice."""
    parts = detector_cost(build(CASCADES[0])[1]).total.parts
    one = 256 * 49 * 1024 + 1024 * 1024 + 1024 * (81 + 4)
    assert parts["box_head"].macs == 3 * 1000 * one


@pytest.mark.parametrize("path", VITDET, ids=lambda path: path.stem)
def test_vitdet_recipe(path: Path) -> None:
    """Pyramid, heads, squares, schedule and decay of Detectron2's projects/ViTDet."""
    cfg, detector = build(path)
    side = cfg.model.backbone.piip.image_sizes[-1]
    assert type(detector.backbone).__name__ == "SimplePyramid"
    assert detector.backbone.padding_constraints["square_size"] == side
    assert side % detector.backbone.size_divisibility == 0
    _, resize, crop = cfg.dataloader.train.mapper.augmentations
    assert (resize.target_height, resize.min_scale, resize.max_scale) == (side, 0.1, 2.0)
    assert tuple(crop.crop_size) == (side, side)
    heads = detector.roi_heads.box_head
    heads = list(heads) if isinstance(heads, torch.nn.ModuleList) else [heads]
    assert len(heads) == (3 if path.stem.startswith("cascade") else 1)
    assert all((len(head.conv_norm_relus), len(head.fcs)) == (4, 1) for head in heads)
    assert len(detector.proposal_generator.rpn_head.conv) == 2
    assert cfg.train.max_iter * cfg.dataloader.train.total_batch_size == 100 * 118000
    assert not cfg.train.get("model_ema", {}).get("enabled", False)
    assert cfg.optimizer.params.layer_decay_rate == (0.7 if "tsb_" in path.stem else 0.8)
    instantiate(cfg.lr_multiplier)
    cfg.optimizer.params.model = detector
    groups = instantiate(cfg.optimizer).param_groups
    undecayed = {id(p) for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    names = [name for name, p in detector.named_parameters() if id(p) not in undecayed]
    assert names and not [name for name in names if name.endswith("pos_embed")]


def test_cascade_trains_and_predicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The quick one: losses of all three stages have gradients, and boxes come out."""
    tiny_config(tmp_path, monkeypatch)  # draws the images
    cfg = LazyConfig.apply_overrides(LazyConfig.load(str(QUICK)), ["dataloader.train.total_batch_size=2"])
    torch.manual_seed(0)
    detector = build_model(cfg)
    loader = instantiate(cfg.dataloader.train)
    assert isinstance(loader, TrainLoader)
    batch = next(iter(loader))
    with EventStorage():
        losses = detector(batch)
    assert {f"loss_{kind}_stage{k}" for kind in ("cls", "box_reg") for k in range(3)} < set(losses)
    sum(losses.values()).backward()
    assert all(p.grad is not None for name, p in detector.named_parameters() if "roi_heads" in name)
    detector.eval()
    with torch.no_grad():
        (output,) = detector([{"image": batch[0]["image"], "height": 64, "width": 64}])
    assert {"pred_boxes", "scores", "pred_classes", "pred_masks"} == set(output["instances"].get_fields())
