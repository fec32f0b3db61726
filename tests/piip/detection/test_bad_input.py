"""Batches without objects and images of a pixel: every kind of detector takes them alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ... import require

require.detectron2()

import torch
from detectron2.config import instantiate
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from piip.engine.config import load_config
from piip.engine.train import train

from ..tiny_config import REPOSITORY, tiny_config

KINDS = ("mask_rcnn", "cascade_mask_rcnn", "dino")


def detector(kind: str) -> Any:
    torch.manual_seed(0)
    path = REPOSITORY / f"configs/quick/{kind}_piip_128_96_64_shapes.py"
    return instantiate(load_config(str(path)).model)


def sample(height: int, width: int, boxes: list[list[float]]) -> dict[str, Any]:
    instances = Instances(
        (height, width),
        gt_boxes=Boxes(torch.tensor(boxes).reshape(-1, 4)),
        gt_classes=torch.zeros(len(boxes), dtype=torch.int64),
        gt_masks=BitMasks(torch.ones(len(boxes), height, width, dtype=torch.bool)),
    )
    return {"image": torch.full((3, height, width), 100, dtype=torch.uint8), "instances": instances}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["no objects in the batch", "one object that fits one level", "a pixel"])
def test_trains(kind: str, case: str) -> None:
    """Losses and gradients are finite, and every parameter gets one, as data-parallel training needs."""
    batch = {
        "no objects in the batch": [sample(64, 64, []), sample(48, 64, [])],
        "one object that fits one level": [sample(64, 64, [[8, 8, 14, 14]]), sample(64, 64, [])],
        "a pixel": [sample(1, 1, [[0, 0, 1, 1]]), sample(1, 40, [])],
    }[case]
    model = detector(kind).train()
    with EventStorage():
        losses = model(batch)
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("kind", KINDS)
def test_finds_nothing_infinite_in_a_pixel(kind: str) -> None:
    """Also where DINO has fewer cells than queries."""
    model = detector(kind).eval()
    with torch.no_grad():
        for height, width in ((1, 1), (1, 90)):
            (output,) = model([sample(height, width, []) | {"height": 10, "width": 20}])
            found = output["instances"]
            assert found.image_size == (10, 20) and torch.isfinite(found.pred_boxes.tensor).all()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_stops_training(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the iteration and what gave it away; nothing of it is saved."""
    path = REPOSITORY / f"configs/quick/{kind}_piip_128_96_64_shapes.py"
    cfg = tiny_config(tmp_path, monkeypatch, "optimizer.lr=1e30", config=path)
    with pytest.raises(FloatingPointError, match=r"diverged at iteration 1 \(.*(Inf/NaN|not finite)"):
        train(cfg)
    assert not list(tmp_path.glob("output/*.pth"))
