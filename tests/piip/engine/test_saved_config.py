"""Configs travel with weights: checkpoints keep them as text, which is read without running code."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from ... import require

require.detectron2()

from piip.engine.checkpoints.checkpoint import Checkpointer, header, read_about
from piip.engine.config import UnusableConfigError, config_of, load_config
from piip.engine.model import build_model
from piip.engine.prediction.predict import Predictor
from piip.engine.saved_config import config_differences, dump, parse, targets
from piip.weights.files.tensors import write_file

from ..tiny_config import QUICK_CONFIG, QUICK_SEGMENTOR, REPOSITORY

QUICK = str(QUICK_CONFIG)
OTHER_SIZES = [
    "model.backbone.piip.image_sizes=[32,48,64]",
    "dataloader.test.mapper.augmentations.0.long_edge=64",
    "dataloader.test.mapper.augmentations.0.short_edge=64",
]


@pytest.mark.parametrize(
    "name",
    [
        "quick/mask_rcnn_piip_128_96_64_shapes",
        "quick/classifier_piip_96_48_24_patterns",
        "COCO/dino_piip_sbl_1792_1120_672_3x",
        "ADE20K/upernet_piip_tsb_896_448_336_160k",
        "comparison/detectron2_vitdet_b",
    ],
)
def test_text_and_back(name: str) -> None:
    text = dump(load_config(str(REPOSITORY / f"configs/{name}.py")))
    assert dump(parse(text)) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: !!python/object/apply:os.system ['touch {}']", "tag !!python/object/apply:os.system"),
        ("model: !!python/object/new:os.system ['touch {}']", "could run code"),
        ("model: !!python/name:os.system", "it calls os.system: expected a class of PIIP"),
        ("model: !!python/module:os", "could run code"),
        ("model: {{_target_: os.system, command: 'touch {}'}}", "it calls os.system"),
        ("model: {{a: [{{_target_: torch.load, f: x}}]}}", "it calls torch.load"),
        ("model: {{_target_: torch.nn.os.system}}", "it calls"),
        ("model: {{_target_: piip.engine.config.load_config, path: x.py}}", "which only a .py config may"),
        ("model: {{_target_: detectron2.data.DatasetCatalog.pop}}", "it calls"),
        ("model: {{_target_: timm.data.create_dataset, trust_remote_code: true}}", "trust_remote_code"),
        ("model: {{_target_: piip.engine.prediction.sinks.JsonWriter, path: '{}'}}", "only a .py config may"),
        ("model: {{_target_: piip.engine.config.Path, path: '{}'}}", "only a .py config may"),
        ("model: {{_target_: piip.nothing.There}}", "which is not there"),
        ("[1, 2", "it is no config as yaml"),
        ("model: ${{a", "it is no config as yaml"),
        ("[" * 9000, "it is no config as yaml"),
    ],
)
def test_text_runs_no_code(text: str, message: str, tmp_path: Path) -> None:
    """Neither as a checkpoint's config nor as a file."""
    text = text.format(tmp_path / "ran") if "{" in text else text
    with pytest.raises(ValueError, match=message) as caught:
        parse(text)
    assert "\n" not in str(caught.value)
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"config\.yaml cannot be used"):
        load_config(str(tmp_path / "config.yaml"))
    assert not (tmp_path / "ran").exists()


def test_what_the_config_at_hand_calls_is_trusted() -> None:
    text = "dataloader: {evaluator: {_target_: my.Evaluator}}"
    with pytest.raises(ValueError, match=r"it calls my\.Evaluator"):
        parse(text)
    assert targets(parse(text, trusted={"my.Evaluator"})) == {"my.Evaluator"}


def test_differences() -> None:
    given = OmegaConf.create({"a": {"b": 1, "c": [1, 2]}, "d": [{"e": 1}], "f": "${a.b}", "g": None})
    kept = OmegaConf.create({"a": {"b": 2, "c": [1, 3]}, "d": [{"e": 2}], "f": "${a.b}"})
    found = [(d.key, d.given, d.kept) for d in config_differences(given, kept)]
    assert found == [("a.b", 1, 2), ("a.c", [1, 2], [1, 3]), ("d.0.e", 1, 2)]


@pytest.fixture(scope="module", params=["pth", "safetensors"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint of a model with other image sizes than its config has, and the same gathered."""
    folder = tmp_path_factory.mktemp("trained")
    cfg = load_config(QUICK, OTHER_SIZES)
    metadata = {"thing_classes": ["a"], "thing_dataset_id_to_contiguous_id": {7: 0}}
    checkpointer = Checkpointer(build_model(cfg), str(folder), metadata=metadata, config=dump(cfg))
    checkpointer.save("model")
    path = str(folder / "model.pth")
    if request.param == "safetensors":
        about = read_about(path)
        assert about == {"metadata": metadata, "config": dump(cfg)}
        path = str(folder / "model.safetensors")
        write_file(checkpointer.model.state_dict(), path, header(about))
        assert read_about(path) == about
    return path


def test_sizes_travel_with_the_weights(trained: str, caplog: pytest.LogCaptureFixture) -> None:
    """They take the place of the config's own, which is said in a line each; what the user says stands."""
    caplog.set_level(logging.WARNING)
    cfg = load_config(QUICK, weights=trained)
    assert list(cfg.model.backbone.piip.image_sizes) == [32, 48, 64]
    assert cfg.dataloader.test.mapper.augmentations[0].long_edge == 64
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 3
    assert "model.backbone.piip.image_sizes is [64, 96, 128] in" in lines[0]
    assert "and [32, 48, 64] in" in lines[0]
    predictor = Predictor(cfg, trained)
    assert predictor.side == 64

    caplog.clear()
    (key,) = (override.partition("=")[0] for override in OTHER_SIZES[:1])
    cfg = load_config(QUICK, [f"{key}=[40,60,80]", f"train.init_checkpoint={trained}"], weights="")
    assert list(cfg.model.backbone.piip.image_sizes) == [40, 60, 80]


def test_without_a_config(trained: str, tmp_path: Path) -> None:
    assert list(load_config(None, weights=trained).model.backbone.piip.image_sizes) == [32, 48, 64]
    write_file({"model": {}}, tmp_path / "nameless.pth")
    assert config_of(str(tmp_path / "nameless.pth")) is None
    with pytest.raises(ValueError, match="does not say what config it is of: give --config-file"):
        load_config(None, weights=str(tmp_path / "nameless.pth"))


def test_the_same_config_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cfg = load_config(QUICK, ["+model.backbone.piip.branches.0.drop_path_rate=0.5", "train.max_iter=7"])
    torch.save({"model": {}, "config": dump(cfg)}, tmp_path / "model.pth")
    load_config(QUICK, weights=str(tmp_path / "model.pth"))
    assert caplog.text == ""


def test_another_model(trained: str) -> None:
    with pytest.raises(ValueError, match=r"holds a .*GeneralizedRCNN, .* describes a .*Segmentor: give the"):
        load_config(str(QUICK_SEGMENTOR), weights=trained)


def test_a_hostile_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without a config it is refused; a config of one's own is used as it is, with a line."""
    path = str(tmp_path / "model.pth")
    torch.save({"model": {}, "config": "model: {_target_: os.system, command: 'true'}"}, path)
    with pytest.raises(UnusableConfigError, match=r"the config in .* cannot be used, it calls os\.system"):
        load_config(None, weights=path)
    assert list(load_config(QUICK, weights=path).model.backbone.piip.image_sizes) == [64, 96, 128]
    assert "cannot be used, it calls os.system" in caplog.text
