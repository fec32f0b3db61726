"""COCO-format datasets: what is said of those that cannot be used."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from ... import require

require.detectron2()

import cv2
import numpy as np
from detectron2.config import instantiate

from piip.detection.data import dataset_dicts, register_coco
from piip.detection.evaluation import COCOEvaluator

from ..tiny_config import tiny_config


def test_missing_annotations(tmp_path: Path) -> None:
    register_coco("missing", tmp_path / "nowhere.json", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json of dataset 'missing' does not exist: put .*"):
        dataset_dicts("missing")
    with pytest.raises(KeyError, match="dataset 'never_heard_of' is not registered"):
        dataset_dicts("never_heard_of")


@pytest.mark.parametrize("kind", ["truncated", "empty", "missing", "not an image", "of another size"])
def test_training_goes_on_past_a_broken_file(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With Detectron2's mapper, as the configs have it."""
    cfg = tiny_config(tmp_path, monkeypatch)
    victim = tmp_path / "datasets/shapes/train/000003.png"
    contents = {
        "truncated": cv2.imencode(".jpg", np.zeros((64, 64, 3), np.uint8))[1].tobytes()[:400],
        "empty": b"",
        "not an image": b"hello",
        "of another size": cv2.imencode(".png", np.zeros((9, 9, 3), np.uint8))[1].tobytes(),
    }
    if kind == "missing":
        victim.unlink()
    else:
        victim.write_bytes(contents[kind])
    loader = instantiate(cfg.dataloader.train)
    batches = list(itertools.islice(loader, 6))  # an epoch
    assert all(len(batch) == 2 for batch in batches)
    assert list(loader.skipped) == [str(victim)]


def test_more_objects_than_are_counted_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """COCO's evaluation counts 100 detections per image, or as many as the config says."""
    one = {"image_id": 1, "category_id": 2, "bbox": [0, 0, 2, 2], "area": 4, "iscrowd": 0}
    many = {
        "images": [{"id": 1, "file_name": "a.png", "height": 4, "width": 4}],
        "annotations": [{**one, "id": i + 1} for i in range(150)],
        "categories": [{"id": 2, "name": "thing"}],
    }
    (tmp_path / "many.json").write_text(json.dumps(many))
    register_coco("many", tmp_path / "many.json", tmp_path)
    COCOEvaluator("many", max_dets_per_image=300)
    assert not caplog.records
    COCOEvaluator("many")
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "1 images have more than 100 objects, up to 150. At most 100 detections per image are counted"
    ]
