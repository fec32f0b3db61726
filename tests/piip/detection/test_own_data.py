"""Training on data of one's own: from annotations on the command line to the right names in the picture."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from ... import require

require.detectron2()

import cv2
import numpy as np
from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from omegaconf import DictConfig

from piip.detection.own_data import CocoFiles, follow_weights, use_own_data
from piip.engine.checkpoint import Checkpointer
from piip.engine.config import load_config
from piip.engine.predict import Predictor
from piip.engine.train import build_model, evaluate, train
from piip.quick.shapes import write_split

from ..tiny_config import QUICK_CONFIG, REPOSITORY, tiny_config

NAMES = {3: "bolt", 7: "nut", 20: "washer"}  # ids with gaps, as people have them


def write_own(folder: Path) -> list[str]:
    """Scenes of shapes whose classes are three others; returns what `--data` takes."""
    data = []
    for split, number in (("train", 8), ("val", 3)):
        path = write_split(folder, split, number, image_size=64, seed=1)
        content = json.loads(path.read_text())
        ids = list(NAMES)
        for annotation in content["annotations"]:
            annotation["category_id"] = ids[annotation["category_id"] % 3]
        content["categories"] = [{"id": id_, "name": name} for id_, name in NAMES.items()]
        path.write_text(json.dumps(content))
        data.append(f"{split}={path}:{folder / split}")
    return data


def test_three_classes_from_a_checkpoint_of_six(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Only what follows the classes starts anew; the names travel with the weights to the prediction."""
    cfg = tiny_config(tmp_path, monkeypatch)
    torch.manual_seed(1)
    six = build_model(cfg)
    Checkpointer(six, str(tmp_path)).save("six")
    cfg.train.init_checkpoint = str(tmp_path / "six.pth")
    cfg.train.max_iter = 1
    cfg.optimizer.lr = 0.0

    restartable = use_own_data(cfg, write_own(tmp_path / "own"))
    assert restartable == {
        "roi_heads.box_predictor.cls_score.weight",
        "roi_heads.box_predictor.cls_score.bias",
    }
    with caplog.at_level(logging.WARNING):
        train(cfg, restartable=restartable)
    assert "2 tensors follow the number of classes and start anew" in caplog.text
    final = torch.load(tmp_path / "output/model_final.pth", weights_only=True)
    assert final["model"]["roi_heads.box_predictor.cls_score.weight"].shape[0] == 3 + 1
    for key, tensor in six.state_dict().items():
        assert key in restartable or torch.equal(final["model"][key], tensor), key

    # Prediction from the config as it is on disk and the weights: names and ids are those of the data.
    plain = load_config(str(QUICK_CONFIG))
    follow_weights(plain, str(tmp_path / "output/model_final.pth"))
    predictor = Predictor(plain, str(tmp_path / "output/model_final.pth"))
    assert predictor.metadata.thing_classes == list(NAMES.values())
    assert predictor.metadata.thing_dataset_id_to_contiguous_id == {3: 0, 7: 1, 20: 2}
    found = predictor(np.full((64, 64, 3), 128, np.uint8))["instances"]
    assert len(found) == 0 or int(found.pred_classes.max()) < 3


def test_evaluation_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The validation split is enough, and the evaluator knows its classes."""
    cfg = tiny_config(tmp_path, monkeypatch)
    use_own_data(cfg, write_own(tmp_path / "own")[1:], train=False)
    results = evaluate(cfg, build_model(cfg))
    assert {key for key in results["bbox"] if key.startswith("AP-")} == {f"AP-{n}" for n in NAMES.values()}
    assert MetadataCatalog.get("own_val").thing_classes == list(NAMES.values())


@pytest.mark.parametrize(
    "name", ["mask_rcnn_piip_tsb_1120_896_448_1x", "mask_rcnn_piip_ct_cs_cb_1024_672_448_1x"]
)
def test_what_follows_the_classes_in_a_released_detector(name: str, tmp_path: Path) -> None:
    cfg: DictConfig = load_config(str(REPOSITORY / f"configs/COCO/{name}.py"))
    names = use_own_data(cfg, write_own(tmp_path))
    parts = ("box_predictor.cls_score", "box_predictor.bbox_pred", "mask_head.predictor")
    assert names == {f"roi_heads.{part}.{kind}" for part in parts for kind in ("weight", "bias")}
    assert cfg.model.roi_heads.num_classes == 3
    with torch.device("meta"):
        state = instantiate(cfg.model).state_dict()
    assert state["roi_heads.box_predictor.bbox_pred.weight"].shape[0] == 3 * 4


def test_other_mismatches_stay_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = tiny_config(tmp_path, monkeypatch)
    restartable = use_own_data(cfg, write_own(tmp_path / "own"))
    state = build_model(cfg).state_dict()
    state["roi_heads.box_head.fc1.weight"] = torch.zeros(3, 3)
    torch.save({"model": state}, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=r"1 shapes differ: roi_heads\.box_head\.fc1\.weight"):
        Checkpointer(build_model(cfg), restartable=restartable).load(str(tmp_path / "odd.pth"))


def test_what_data_is_called(tmp_path: Path) -> None:
    (tmp_path / "a:b").mkdir()
    annotations = tmp_path / "a:b/x.json"
    annotations.write_text("{}")
    files = CocoFiles.parse(f"val={annotations}:{tmp_path}")
    assert (files.split, files.annotations, files.images) == ("val", annotations, tmp_path)
    assert CocoFiles.parse(f"val={annotations}").images == tmp_path / "a:b"


def category(id_: int, name: str) -> dict[str, Any]:
    return {"id": id_, "name": name}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (["train=a.png:b"], "not of the form train=ANNOTATIONS.json:IMAGES"),
        (["test={one}:{folder}"], "not of the form"),
        (["train=none.json:{folder}"], "annotations none.json do not exist"),
        (["train={one}:none"], "image folder none does not exist"),
        (["train={one}:{folder}"], "lacks val: give val=ANNOTATIONS.json:IMAGES too"),
        (["val={one}:{folder}", "val={one}:{folder}"], "names a split twice"),
        (["train={one}:{folder}", "val={two}:{folder}"], "categories of train and val differ"),
        (["train={one}:{folder}", "val={none}:{folder}"], "has no categories"),
        (["train={one}:{folder}", "val={text}:{folder}"], "is not a COCO annotation file"),
    ],
)
def test_data_that_cannot_be(data: list[str], message: str, tmp_path: Path) -> None:
    contents = {"one": [category(1, "a")], "two": [category(1, "b")], "none": []}
    paths = {"folder": str(tmp_path), "text": str(tmp_path / "text.json")}
    (tmp_path / "text.json").write_text("not json")
    for name, categories in contents.items():
        paths[name] = str(tmp_path / f"{name}.json")
        Path(paths[name]).write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    cfg = load_config(str(QUICK_CONFIG))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        use_own_data(cfg, [entry.format(**paths) for entry in data])


def test_unusable_images_of_a_test_set_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaving one out would change the figure."""
    cfg = tiny_config(tmp_path, monkeypatch)
    victim = tmp_path / "datasets/shapes/val/000001.png"
    victim.write_bytes(cv2.imencode(".png", np.zeros((64, 64, 3), np.uint8))[1].tobytes()[:60])
    with pytest.raises(ValueError, match=r"000001\.png cannot be evaluated \(.*\): mend it, or take it out"):
        evaluate(cfg, build_model(cfg))
