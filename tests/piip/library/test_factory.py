"""Models by name: what a notebook starts with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image
from safetensors.torch import save_file

import piip
from piip.branches import published
from piip.data import create_transform, resolve_data_config
from piip.library import factory, registry
from piip.library.models import BranchFeatures, PublishedBackbone, PublishedClassifier
from piip.official import to_official_backbone, to_official_classifier
from piip.weights import zoo

from ..models import randomise

REPOSITORY = Path(__file__).parents[3]


def test_names() -> None:
    assert piip.list_models("*.in1k") == [
        "piip_sbl_320_160_96.in1k",
        "piip_sbl_384_192_128.in1k",
        "piip_tsb_368_192_128.in1k",
    ]
    assert piip.list_models("piip_b*") == ["piip_b_512_256_128"]
    assert piip.list_models("piip_b*", pretrained=True) == []
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


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models of the published make, small: "backbone", "classifier", and "merged" with one head."""
    monkeypatch.setattr(published, "VIT_SIZES", {"T": (32, 12, 2), "S": (64, 12, 2), "B": (64, 12, 2)})
    backbone = registry.Entry(
        "TSB", (96, 64, 48), zoo.find("mask_rcnn_deit_tsb_1120_896_448_fpn_1x_coco_bs16"), 14
    )
    classifier = registry.Entry("TSB", (96, 64, 48), zoo.models_of("classification")[0], classifier="deit")
    monkeypatch.setattr(registry, "MODELS", {"backbone": backbone, "classifier": classifier})


def same(one: torch.nn.Module, two: torch.nn.Module) -> bool:
    other = two.state_dict()
    return all(torch.equal(tensor, other[key]) for key, tensor in one.state_dict().items())


def test_a_backbone_and_its_features(small: None) -> None:
    model = randomise(piip.create_model("backbone")).eval()
    assert [(i["num_chs"], i["reduction"]) for i in model.feature_info] == [(64, s) for s in (4, 8, 16, 32)]
    features = piip.create_model("backbone", features_only=True).eval()
    features.load_state_dict(model.state_dict())
    image = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        maps, listed = model(image), features(image)
    assert [x.shape for x in listed] == [
        (1, 64, 160 // s, 160 // s) for s in features.feature_info.reduction()
    ]
    assert all(torch.equal(x, maps[level]) for x, level in zip(listed, ("f1", "f2", "f3", "f4"), strict=True))
    two = piip.create_model("backbone", features_only=True, out_indices=(1, 3))
    assert two.feature_info.reduction() == [8, 32] and two.feature_info.channels() == [64, 64]
    assert [x.shape[2] for x in two(image)] == [20, 5]


def test_a_classifier_as_timm_has_them(small: None) -> None:
    """Features and head apart, another number of classes, none, and the branches' maps."""
    model = randomise(piip.create_model("classifier", num_classes=10)).eval()
    image = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        features = model.forward_features(image)
        logits, tokens = model.forward_head(features), model.forward_head(features, pre_logits=True)
        assert torch.equal(logits, model(image))
        assert tokens.shape == (2, model.num_features) == (2, 64 + 64 + 32)
        parts = tokens.split([64, 64, 32], dim=1)
        by_hand = torch.stack([head(x) for head, x in zip(model.get_classifier().heads, parts, strict=True)])
        torch.testing.assert_close(logits, by_hand.mean(0))
        model.reset_classifier(0)
        assert model.num_classes == 0
        assert torch.equal(model(image), tokens)  # the norms are those of before
        listed = piip.create_model("classifier", features_only=True)(image)
    assert [(i["num_chs"], i["reduction"]) for i in model.feature_info] == [(32, 16), (64, 24), (64, 32)]
    assert [x.shape for x in listed] == [(2, 32, 6, 6), (2, 64, 4, 4), (2, 64, 3, 3)]


def test_reductions_of_branches() -> None:
    """In pixels of the input: patches of 16 px of images of 384, 192 and 128 px."""
    with torch.device("meta"):
        model = piip.create_model("piip_sbl_384_192_128.in1k", features_only=True)
    assert model.feature_info.reduction() == [16, 32, 48]
    assert model.feature_info.channels() == [384, 768, 1024]


def test_weights_from_a_path(small: None, tmp_path: Path) -> None:
    """The backbone of a released detector's file; a classifier's, for other classes; a state dict of ours."""
    source = piip.create_model("backbone")
    published = {f"backbone.{k}": v for k, v in to_official_backbone(source.state_dict()).items()}
    torch.save({"state_dict": {**published, "neck.x": torch.zeros(1)}}, tmp_path / "detector.pth")
    assert same(source, piip.create_model("backbone", pretrained=tmp_path / "detector.pth"))
    torch.save(source.state_dict(), tmp_path / "ours.pth")
    assert same(source, piip.create_model("backbone", tmp_path / "ours.pth", features_only=True))

    source = piip.create_model("classifier")
    torch.save({"model": to_official_classifier(source.state_dict())}, tmp_path / "classifier.pth")
    loaded = piip.create_model("classifier", pretrained=str(tmp_path / "classifier.pth"), num_classes=10)
    assert loaded.num_classes == 10
    assert same(source.piip, loaded.piip)
    features = piip.create_model("classifier", tmp_path / "classifier.pth", features_only=True)
    assert isinstance(features, BranchFeatures) and same(source.piip, features.piip)
    with pytest.raises(ValueError, match=r"detector\.pth"):
        piip.create_model("classifier", pretrained=tmp_path / "detector.pth")


@pytest.mark.parametrize("name", ["backbone", "classifier"])
def test_round_trip(small: None, tmp_path: Path, name: str) -> None:
    """Saved and read back without a network: the config travels, the weights are equal."""
    source = randomise(piip.create_model(name))
    if isinstance(source, PublishedClassifier):
        source.reset_classifier(7)
    source.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config == {"name": name, **({"num_classes": 7} if name == "classifier" else {})}
    assert "library_name: piip" in (tmp_path / "README.md").read_text()
    loaded = type(source).from_pretrained(tmp_path)
    assert type(loaded) is type(source) and same(source, loaded) and not loaded.training
    assert loaded.pretrained_cfg == source.pretrained_cfg
    again = piip.create_model(name, pretrained=tmp_path)
    assert same(source, again) and getattr(again, "num_classes", 0) == (7 if name == "classifier" else 0)
    other = {"backbone": "classifier", "classifier": "backbone"}[name]
    with pytest.raises(ValueError, match=f"holds {name}, not {other}"):
        piip.create_model(other, pretrained=tmp_path)
    wrong = PublishedBackbone if name == "classifier" else PublishedClassifier
    with pytest.raises(ValueError, match=f"{name} is a "):
        wrong.from_pretrained(tmp_path)


def test_what_is_missing_is_noticed(small: None, tmp_path: Path) -> None:
    """The mixin by itself would leave what a file lacks as it starts."""
    source = piip.create_model("classifier")
    source.save_pretrained(tmp_path)
    state = {k: v for k, v in source.state_dict().items() if "norms.1" not in k}
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(RuntimeError, match=r"head\.norms\.1"):
        PublishedClassifier.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds another model: .*head\.norms\.1"):
        piip.create_model("classifier", pretrained=tmp_path)


def test_from_the_hub(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the hub hands out the files of a folder."""
    source = piip.create_model("classifier", num_classes=5)
    source.save_pretrained(tmp_path)
    asked = []

    def download(*, repo_id: str, filename: str) -> str:
        asked.append((repo_id, filename))
        if repo_id != "team/sorter":
            raise LocalEntryNotFoundError("not in the cache, and no connection")
        return str(tmp_path / filename)

    monkeypatch.setattr(factory, "hf_hub_download", download)
    by_name = piip.create_model("classifier", pretrained="hf-hub:team/sorter")
    assert same(source, by_name) and by_name.num_classes == 5
    assert asked == [("team/sorter", "config.json"), ("team/sorter", "model.safetensors")]
    assert same(source, piip.create_model("hf-hub:team/sorter", pretrained=True))
    assert not same(source, piip.create_model("hf-hub:team/sorter"))
    with pytest.raises(ConnectionError, match=r"config\.json of hf-hub:team/other .*give the path of"):
        piip.create_model("classifier", pretrained="hf-hub:team/other")


def test_to_the_hub(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What would be uploaded: the three files of `save_pretrained`."""
    uploaded: list[str] = []

    class Hub:
        def __init__(self, **options: object) -> None: ...

        def create_repo(self, repo_id: str, **options: object) -> object:
            return type("Repository", (), {"repo_id": repo_id})

        def upload_folder(self, *, folder_path: Path, **options: object) -> str:
            uploaded.extend(sorted(file.name for file in Path(folder_path).iterdir()))
            return "commit"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Hub)
    assert piip.create_model("classifier").push_to_hub("team/sorter") == "commit"
    assert uploaded == ["README.md", "config.json", "model.safetensors"]


def test_images_for_a_model() -> None:
    """Detectors see whole images, padded; classifiers a crop, with ImageNet's statistics."""
    image = Image.fromarray(np.full((100, 300, 3), 255, np.uint8))
    with torch.device("meta"):
        backbone, classifier = map(piip.create_model, ("piip_tsb_1120_896_448", "piip_tsb_368_192_128.in1k"))
    config = resolve_data_config(backbone)
    assert (config["input_size"], config["mean"], config["interpolation"]) == (
        (3, 1120, 1120),
        (0.5,) * 3,
        "bilinear",
    )
    x = create_transform(**config)(image)
    assert x.shape == (3, 1120, 1120)
    assert (
        torch.equal(x[:, 560], torch.ones(3, 1120)) and x[:, 0].abs().max() < 0.01
    )  # grey bars above and below
    config = resolve_data_config(classifier, input_size=(3, 224, 224))
    assert (config["mean"], config["crop_pct"]) == ((0.485, 0.456, 0.406), 1.0)
    x = create_transform(**config)(image)
    torch.testing.assert_close(x[0], torch.full((224, 224), (1 - 0.485) / 0.229))
    with pytest.raises(ValueError, match="Identity has no pretrained_cfg"):
        resolve_data_config(torch.nn.Identity())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("piip_sbl_1", {}, "unknown model 'piip_sbl_1': expected one of piip_sbl_1120_672_448"),
        ("piip_tsb_1120_896_448", {"num_classes": 3}, "is a backbone without classifier"),
        ("piip_sbl_384_192_128.in1k", {"features_only": True, "num_classes": 3}, "give no num_classes"),
        ("piip_sbl_384_192_128.in1k", {"out_indices": (0,)}, "features_only=True"),
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
