"""Models by name: what a notebook starts with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import piip
from piip.library import factory
from piip.library.factory import PyramidFeatures
from piip.official import to_official_backbone, to_official_classifier

REPOSITORY = Path(__file__).parents[3]


def test_names() -> None:
    assert piip.list_models("*.in1k") == [
        "piip_sbl_320_160_96.in1k",
        "piip_sbl_384_192_128.in1k",
        "piip_tsb_368_192_128.in1k",
    ]
    assert {"piip_tsb_1120_896_448", "piip_tsbl_1568_1120_672_448"} <= set(piip.list_models())


@pytest.mark.parametrize("name", piip.list_models())
def test_every_model_builds(name: str) -> None:
    """With the published number of parameters, and says what it wants to see."""
    with torch.device("meta"):
        model = piip.create_model(name)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    published = {
        "piip_tsb_368_192_128.in1k": 144.031416,
        "piip_sbl_320_160_96.in1k": 488.795832,
        "piip_sbl_384_192_128.in1k": 488.925880,
        "piip_b_512_256_128": 100.956779,
    }
    zoo = {"tsb": 175.04, "sbl": 547.81, "tsbl": 571.07}
    expected = published.get(name) or zoo[name.split("_")[1]]
    assert millions == pytest.approx(expected, abs=0.006)
    side = int(name.split("_")[2])
    assert model.pretrained_cfg["input_size"] == (3, side, side)


def test_a_backbone_and_its_features() -> None:
    torch.manual_seed(0)
    model = piip.create_model("piip_tsb_1120_896_448").eval()
    assert [(i["num_chs"], i["reduction"]) for i in model.feature_info] == [(768, s) for s in (4, 8, 16, 32)]
    features = PyramidFeatures(model.piip, model.pyramid).eval()
    image = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        maps, listed = model(image), features(image)
    assert [x.shape for x in listed] == [(1, 768, 160 // s, 160 // s) for s in (4, 8, 16, 32)]
    assert all(torch.equal(x, maps[level]) for x, level in zip(listed, ("f1", "f2", "f3", "f4"), strict=True))


def test_weights_from_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backbone of a released detector's file; a classifier's, for other classes."""
    small = factory._Entry("TSB", (96, 64, 48), "mask_rcnn_deit_tsb_1120_896_448_fpn_1x_coco_bs16", 14)
    classes = factory._Entry("TSB", (96, 64, 48), "x", classifier="deit")
    monkeypatch.setattr(factory, "VIT_SIZES", {"T": (32, 12, 2), "S": (64, 12, 2), "B": (64, 12, 2)})
    monkeypatch.setattr(factory, "_MODELS", {"backbone": small, "classifier": classes})
    source = piip.create_model("backbone")
    published = {f"backbone.{k}": v for k, v in to_official_backbone(source.state_dict()).items()}
    torch.save({"state_dict": {**published, "neck.x": torch.zeros(1)}}, tmp_path / "detector.pth")
    loaded = piip.create_model("backbone", pretrained=tmp_path / "detector.pth")
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in source.state_dict().items())

    source = piip.create_model("classifier")
    torch.save({"model": to_official_classifier(source.state_dict())}, tmp_path / "classifier.pth")
    loaded = piip.create_model("classifier", pretrained=str(tmp_path / "classifier.pth"), num_classes=10)
    assert loaded.num_classes == 10
    assert loaded(torch.randn(2, 3, 96, 96)).shape == (2, 10)
    assert torch.equal(loaded.piip.branches[0].cls_token, source.piip.branches[0].cls_token)
    with pytest.raises(ValueError, match=r"detector\.pth"):
        piip.create_model("classifier", pretrained=tmp_path / "detector.pth")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("piip_sbl_1", {}, "unknown model 'piip_sbl_1': expected one of piip_sbl_1120_672_448"),
        ("piip_tsb_1120_896_448", {"num_classes": 3}, "is a backbone without classifier"),
        ("piip_sbl_384_192_128.in1k", {"features_only": True}, "features_only is for backbones"),
        ("piip_b_512_256_128", {"pretrained": True}, "no weights were released"),
    ],
)
def test_what_cannot_be(name: str, options: dict[str, object], message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        piip.create_model(name, **options)


def test_without_detectron2() -> None:
    """Four lines of a notebook where neither Detectron2 nor what it needs can be imported."""
    lines = """
import sys
for name in ("detectron2", "cv2", "omegaconf", "hydra", "pycocotools", "matplotlib"):
    sys.modules[name] = None
import torch
from piip import create_model, list_models
with torch.device("meta"):
    model = create_model("piip_tsb_368_192_128.in1k", num_classes=10)
    print(tuple(model(torch.randn(1, 3, 368, 368)).shape), len(list_models("*sbl*")) > 3)
"""
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.stdout.strip() == "(1, 10) True", done.stderr
