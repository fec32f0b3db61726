"""DINO as a Detectron2 detector: contract, batches, training, conversion, drawing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ... import require

require.detectron2()

import cv2
import torch
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances
from torch import Tensor

from piip.detection.dino.detector import DINODetector
from piip.engine.checkpoints.convert import convert_checkpoint
from piip.engine.config import load_config
from piip.engine.data.custom_data import class_shapes
from piip.engine.train import train
from piip.quick.shapes import write_split
from piip.weights.converters.dino import convert_dino_detector, to_official_dino_detector

from ..models import randomise
from ..tiny_config import REPOSITORY, tiny_config

CONFIG = REPOSITORY / "configs/quick/dino_piip_128_96_64_shapes.py"


def detector() -> DINODetector:
    torch.manual_seed(0)
    model: Any = randomise(instantiate(load_config(str(CONFIG)).model)).eval()
    return model


def image(height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def objects(height: int, width: int, *boxes: tuple[float, ...]) -> Instances:
    return Instances(
        (height, width),
        gt_boxes=Boxes(torch.tensor(boxes).reshape(-1, 4)),
        gt_classes=torch.zeros(len(boxes), dtype=torch.int64),
    )


def test_no_company_changes_a_prediction() -> None:
    """An image alone, before and after a larger one: the same boxes, bit for bit."""
    model, small, large = detector(), {"image": image(96, 70)}, {"image": image(128, 128, 1)}
    with torch.no_grad():
        alone = model([small])[0]["instances"]
        for batch, place in (([small, large], 0), ([large, small], 1)):
            found = model(batch)[place]["instances"]
            assert torch.equal(found.pred_boxes.tensor, alone.pred_boxes.tensor)
            assert torch.equal(found.scores, alone.scores)
            assert torch.equal(found.pred_classes, alone.pred_classes)


def test_boxes_come_at_the_size_asked_for() -> None:
    model, picture = detector(), image(96, 64)
    with torch.no_grad():
        own = model([{"image": picture}])[0]["instances"]
        double = model([{"image": picture, "height": 192, "width": 32}])[0]["instances"]
    assert own.image_size == (96, 64) and double.image_size == (192, 32)
    scale = torch.tensor([0.5, 2.0, 0.5, 2.0])
    torch.testing.assert_close(double.pred_boxes.tensor, own.pred_boxes.tensor * scale)
    assert (own.scores.diff() <= 0).all() and len(own) <= 100


def test_losses() -> None:
    """The published names, one number each; what sets the classes also sets the layers that follow them."""
    model = detector().train()
    batch = [
        {"image": image(96, 70), "instances": objects(96, 70, (5, 5, 40, 60), (30, 10, 60, 90))},
        {"image": image(128, 128, 1), "instances": objects(128, 128)},
    ]
    losses = model(batch)
    kinds = ("cls", "bbox", "iou")
    layers = ("", "d0.", "d1.", "dn_", "d0.dn_", "d1.dn_", "interm_")
    assert set(losses) == {f"{layer}loss_{kind}" for layer in layers for kind in kinds}
    assert all(loss.shape == () and torch.isfinite(loss) for loss in losses.values())
    names = class_shapes(load_config(str(CONFIG)), 3, "head")
    assert {name.split(".")[1] for name in names} == {"label_embedding", "class_branches"}


def test_resumes_bit_for_bit_in_bfloat16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ["train.precision=bfloat16", "train.eval_precision=bfloat16"]

    def config(folder: str, *more: str) -> Any:
        output = f"train.output_dir={tmp_path / folder}"
        return tiny_config(tmp_path, monkeypatch, *settings, output, *more, config=CONFIG)

    constant = "lr_multiplier.scheduler.end_value=1.0"  # the rate does not depend on when training ends
    no_warm_up = "lr_multiplier.warmup_length=0.0"
    train(config("whole", constant, no_warm_up))
    train(config("halves", constant, no_warm_up, "train.max_iter=2"))
    train(config("halves", constant, no_warm_up), resume=True)
    a, b = (
        torch.load(tmp_path / f"{n}/model_final.pth", weights_only=False)["model"]
        for n in ("whole", "halves")
    )
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    entries = [json.loads(line) for line in (tmp_path / "halves/metrics.json").read_text().splitlines()]
    assert [e["iteration"] for e in entries if "total_loss" in e] == [0, 1, 2, 3]
    assert "bbox/AP" in entries[-1]


def test_conversion_and_back(tmp_path: Path) -> None:
    """Through files, bit for bit; the formats are told apart."""
    from piip.engine.backbone import released_maps

    from ..models import tiny_piip

    cfg = load_config(str(CONFIG))
    piip = tiny_piip()
    cfg.model.backbone = released_maps(piip, outputs=["f2", "f3", "f4"])
    cfg.model.in_features = ["f2", "f3", "f4"]
    cfg.model.head.neck.in_dims = [piip.out_channels] * 3
    cfg.model.head.num_levels = cfg.model.head.neck.num_levels = 4
    state = instantiate(cfg.model).state_dict()
    official = to_official_dino_detector(state)
    assert convert_dino_detector(official).keys() == state.keys()
    torch.save({"state_dict": official}, tmp_path / "released.pth")
    convert_checkpoint(str(tmp_path / "released.pth"), str(tmp_path / "ours.pth"), cfg)
    ours = torch.load(tmp_path / "ours.pth", weights_only=True)["model"]
    assert ours.keys() == state.keys() and all(torch.equal(ours[key], state[key]) for key in state)
    convert_checkpoint(str(tmp_path / "ours.pth"), str(tmp_path / "back.pth"), cfg, to_official=True)
    back = torch.load(tmp_path / "back.pth", weights_only=True)["state_dict"]
    assert back.keys() == official.keys() and all(torch.equal(back[k], official[k]) for k in official)
    with pytest.raises(
        ValueError, match=r"x has no released form as a DINO detector, 1 keys are unknown: roi_heads.x"
    ):
        to_official_dino_detector({"roi_heads.x": torch.zeros(1)}, "x")


def test_tools(tmp_path: Path) -> None:
    """Two processes train it; what it finds is drawn, boxes without masks."""
    for split, number in (("train", 8), ("val", 4)):
        write_split(tmp_path / "datasets/shapes", split, number, image_size=64, seed=0)

    def run(tool: str, *arguments: str) -> None:
        done = subprocess.run(
            [sys.executable, str(REPOSITORY / "tools" / tool), "--config-file", str(CONFIG), *arguments],
            cwd=REPOSITORY,
            env={**os.environ, "DETECTRON2_DATASETS": str(tmp_path / "datasets")},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr

    run("lazyconfig_train_net.py", "--num-gpus", "2", f"train.output_dir={tmp_path}", "train.max_iter=2")
    photo = tmp_path / "photo.png"
    cv2.imwrite(str(photo), np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8))
    weights, drawn = str(tmp_path / "model_final.pth"), tmp_path / "drawn"
    run(
        "demo.py",
        "--weights",
        weights,
        "--input",
        str(photo),
        "--output",
        str(drawn),
        "--score-threshold",
        "0",
    )
    records = json.loads((drawn / "predictions.json").read_text())
    assert records and all("bbox" in record and "segmentation" not in record for record in records)
    picture = cv2.imread(str(drawn / "photo.png"))
    assert picture.shape == (90, 70, 3) and (picture != cv2.imread(str(photo))).any()
