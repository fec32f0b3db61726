"""Test-time augmentation of detectors, and soft-NMS."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from ... import require

require.detectron2()

import torch
from detectron2.config import instantiate
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from piip.detection.soft_nms import SoftNMS
from piip.detection.tta import DINOWithTTA, RCNNWithTTA, Views
from piip.engine.config import load_config
from piip.engine.train import evaluate

from ..tiny_config import REPOSITORY, tiny_config

QUICK = {
    kind: REPOSITORY / f"configs/quick/{kind}_piip_128_96_64_shapes.py"
    for kind in ("mask_rcnn", "cascade_mask_rcnn", "dino")
}
ONE_LOOK = {"scales": [1.0], "flip": False}


def image(height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(height)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def detector(kind: str, **changes: Any) -> Any:
    """A quick detector with random weights that finds something."""
    cfg = load_config(str(QUICK[kind]))
    cfg.model.backbone.merge_with(changes)
    torch.manual_seed(0)
    model = instantiate(cfg.model).eval()
    if kind != "dino":
        generator = torch.Generator().manual_seed(1)
        for module in model.modules():
            if isinstance(module, nn.Linear) and module.out_features == 7:  # class scores
                module.weight.data = torch.randn(module.weight.shape, generator=generator) * 0.5
    return model


def assert_same(found: Instances, expected: Instances) -> None:
    """Bit for bit, but for boxes, which pass through a resize and its inverse."""
    assert len(found) == len(expected) > 0 and found.image_size == expected.image_size
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=1e-4, atol=1e-3)
    assert torch.equal(found.pred_classes, expected.pred_classes)
    torch.testing.assert_close(found.scores, expected.scores)
    assert found.has("pred_masks") == expected.has("pred_masks")


@pytest.mark.parametrize("kind", QUICK)
def test_one_look_changes_nothing(kind: str) -> None:
    model = detector(kind)
    wrapper = DINOWithTTA if kind == "dino" else RCNNWithTTA
    inputs = [{"image": image(100, 76), "height": 200, "width": 150}, {"image": image(64, 80)}]
    with torch.no_grad():
        expected = [model([one])[0] for one in inputs]  # company changes padding
        found = wrapper(model, **ONE_LOOK)(inputs)
    for one, other in zip(found, expected, strict=True):
        assert_same(one["instances"], other["instances"])


@pytest.mark.parametrize("kind", QUICK)
def test_mirrored_input_gives_mirrored_output(kind: str) -> None:
    """An image and its mirror image are looked at in the same two ways."""
    model = detector(kind)
    wrapper = (DINOWithTTA if kind == "dino" else RCNNWithTTA)(model, scales=[0.75, 1.0], flip=True)
    picture = image(96, 64)
    with torch.no_grad():
        found = wrapper([{"image": picture}])[0]["instances"]
        mirrored = wrapper([{"image": picture.flip(2)}])[0]["instances"]
    assert len(found) == len(mirrored) > 1
    # ties of rounding may swap detections of nearly the same score: the best tell
    torch.testing.assert_close(found.scores[:3], mirrored.scores[:3], rtol=1e-3, atol=1e-5)
    boxes = mirrored.pred_boxes.tensor[:3]
    back = torch.stack([64 - boxes[:, 2], boxes[:, 1], 64 - boxes[:, 0], boxes[:, 3]], dim=1)
    torch.testing.assert_close(found.pred_boxes.tensor[:3], back, rtol=1e-3, atol=1e-2)
    if kind != "dino":
        masks = mirrored.pred_masks[:3].flip(2)
        assert (found.pred_masks[:3] == masks).float().mean() > 0.99


def test_views() -> None:
    """Sizes, and boxes of the wanted size brought to a view and back."""
    views = Views([0.5, 1.5], flip=True)({"image": image(40, 60), "height": 80, "width": 120})
    assert [tuple(view["image"].shape) for view in views] == [(3, 20, 30)] * 2 + [(3, 60, 90)] * 2
    assert torch.equal(views[1]["image"], views[0]["image"].flip(2))
    box = torch.tensor([[12.0, 8.0, 60.0, 40.0]]).numpy()
    assert views[0]["transforms"].apply_box(box).tolist() == [[3, 2, 15, 10]]
    assert views[1]["transforms"].apply_box(box).tolist() == [[15, 2, 27, 10]]
    for view in views:
        back = view["transforms"].inverse().apply_box(view["transforms"].apply_box(box))
        assert torch.from_numpy(back).allclose(torch.from_numpy(box))


def test_a_square_holds_enlarged_views() -> None:
    """Detectron2 cuts off what is larger than the square it pads to; afterwards the square is as it was."""
    model = detector("mask_rcnn", square_pad=128)
    seen = []
    model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[2:])))
    with torch.no_grad():
        RCNNWithTTA(model, scales=[0.5, 2.0], flip=False)([{"image": image(128, 48)}])
    assert seen[:2] == [(128, 128), (256, 256)]
    assert model.backbone.padding_constraints["square_size"] == 128


def test_wrong_input_is_refused() -> None:
    model = detector("dino")
    with pytest.raises(ValueError, match="positive factors"):
        DINOWithTTA(model, scales=[1.0, 0.0], flip=False)
    with pytest.raises(ValueError, match="for a GeneralizedRCNN, the model is a DINODetector"):
        RCNNWithTTA(model, **ONE_LOOK)
    with pytest.raises(ValueError, match="for a DINODetector, the model is a Linear"):
        DINOWithTTA(nn.Linear(1, 1), **ONE_LOOK)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown method 'hard'"):
        DINOWithTTA(model, **ONE_LOOK, soft_nms="hard")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["cascade_mask_rcnn", "dino"])
def test_evaluation(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`train.tta=True` evaluates with it, masks included."""
    overrides = ["train.tta=True", "tta.scales=[1.0,1.5]", "tta.soft_nms=gaussian"]
    cfg = tiny_config(tmp_path, monkeypatch, *overrides, config=QUICK[kind])
    results = evaluate(cfg, detector(kind))
    assert math.isfinite(results["bbox"]["AP"]) and ("segm" in results) == (kind != "dino")


def boxes_in_a_row() -> tuple[Tensor, Tensor, Tensor]:
    """Three of one class, each moved on by a fifth of its width (IoU 2/3 with the next), one of another."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [2, 0, 12, 10], [4, 0, 14, 10], [0, 0, 10, 10]])
    return boxes, torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([0, 0, 0, 1])


def test_soft_nms_by_hand() -> None:
    boxes, scores, classes = boxes_in_a_row()
    next_, second = 8 / 12, 6 / 14  # overlap with the next box and the one after
    kept, left = SoftNMS("linear")(boxes, scores, classes, 10)
    # the second falls by the first; the third, not beyond the threshold, stays, and lets it fall once more
    assert kept.tolist() == [0, 2, 3, 1]
    assert left.tolist() == pytest.approx([0.9, 0.7, 0.6, 0.8 * (1 - next_) ** 2])
    kept, left = SoftNMS("gaussian", sigma=0.5)(boxes, scores, classes, 3)
    third = 0.7 * math.exp(-(second**2) / 0.5)
    assert kept.tolist() == [0, 3, 2]
    assert left.tolist() == pytest.approx([0.9, 0.6, third])


def test_soft_nms_becomes_hard_as_sigma_vanishes() -> None:
    """Overlaps of any size but zero then kill."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(60, 2, generator=generator) * 50
    boxes = torch.cat([corners, corners + 5 + torch.rand(60, 2, generator=generator) * 20], dim=1)
    scores, classes = torch.rand(60, generator=generator), torch.arange(60) % 3
    kept, left = SoftNMS("gaussian", sigma=1e-12)(boxes, scores, classes, 60)
    assert kept.tolist() == batched_nms(boxes, scores, classes, 0.0).tolist()
    assert torch.equal(left, scores[kept])


def test_soft_nms_of_nothing() -> None:
    kept, left = SoftNMS()(Boxes(torch.zeros(0, 4)).tensor, torch.zeros(0), torch.zeros(0), 10)
    assert len(kept) == len(left) == 0
