"""COCO-format datasets: what is said of those that cannot be used."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from ... import require

require.detectron2()

import cv2
import numpy as np
from detectron2.config import instantiate

from piip.detection.annotations import sensible_annotations
from piip.detection.data import dataset_dicts, register_coco

from ..tiny_config import tiny_config

VALID = {
    "images": [{"id": 1, "file_name": "a.png", "height": 4, "width": 4}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 2, "bbox": [0, 0, 2, 2], "iscrowd": 0}],
    "categories": [{"id": 2, "name": "thing"}],
}
NO_BOX = {key: value for key, value in VALID["annotations"][0].items() if key != "bbox"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{not json", "it is not JSON"),
        ([1, 2], "its top level is a list, expected an object"),
        ({"shapes": []}, "it has no list 'images'"),
        ({**VALID, "images": [{"id": 1}]}, "images[0] lacks file_name, height, width"),
        ({**VALID, "annotations": [NO_BOX]}, "annotations[0] lacks bbox"),
        ({**VALID, "categories": [{"id": 5, "name": "x"}]}, "category_id 2, not among the categories"),
    ],
)
def test_not_a_coco_file(tmp_path: Path, content: Any, reason: str) -> None:
    """One line that names the file and what is wrong with it."""
    path = tmp_path / "annotations.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    register_coco("not_coco", path, tmp_path)
    with pytest.raises(ValueError, match="is not a COCO annotation file") as caught:
        dataset_dicts("not_coco")
    assert reason in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_usable_image(tmp_path: Path) -> None:
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps({**VALID, "annotations": []}))
    register_coco("empty", path, tmp_path)
    assert len(dataset_dicts("empty", filter_empty=False)) == 1
    with pytest.raises(ValueError, match="dataset empty cannot be used: No valid data found in empty"):
        dataset_dicts("empty")


def test_missing_annotations(tmp_path: Path) -> None:
    register_coco("missing", tmp_path / "nowhere.json", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json of dataset 'missing' does not exist: put .*"):
        dataset_dicts("missing")
    with pytest.raises(KeyError, match="dataset 'never_heard_of' is not registered"):
        dataset_dicts("never_heard_of")


SQUARE = [0, 0, 0, 2, 2, 2, 2, 0]
GOOD = {
    "id": 1,
    "image_id": 1,
    "category_id": 2,
    "bbox": [0, 0, 2, 2],
    "iscrowd": 0,
    "area": 4,
    "segmentation": [SQUARE],
}
RLE = {"size": [4, 4], "counts": "22bN0"}
CASES = {  # an annotation that differs from a good one by this -> what is said of it, or nothing
    "zero area": ({"bbox": [1, 1, 0, 2]}, "annotations whose box has no area"),
    "negative": ({"bbox": [1, 1, -2, 2]}, "annotations whose box has no area"),
    "outside": ({"bbox": [9, 9, 2, 2]}, "annotations whose box is outside the image"),
    "not finite": ({"bbox": [0, 0, float("nan"), 2]}, "annotations without a box of four numbers"),
    "three numbers": ({"bbox": [0, 0, 2]}, "annotations without a box of four numbers"),
    "no mask": ({"segmentation": []}, "annotations without a mask"),
    "unknown category": ({"category_id": 9}, "annotations of an unknown category"),
    "unknown image": ({"image_id": 9}, "annotations of an unknown image"),
    "the same again": ({"id": 1}, "annotations that repeat another"),
    "polygon of two corners": ({"segmentation": [[0, 0, 2, 2]]}, "annotations without a mask"),
    "half a mask": ({"segmentation": {"size": [4, 4], "counts": [3, 5]}}, "annotations whose mask is not of"),
    "mask of another size": ({"segmentation": {**RLE, "size": [5, 4]}}, "annotations whose mask is not of"),
    "RLE": ({"segmentation": RLE}, ""),
    "crowd": ({"segmentation": RLE, "iscrowd": 1}, ""),
    "partly outside": ({"bbox": [3, 3, 5, 5]}, ""),
}


@pytest.mark.parametrize("case", CASES)
def test_annotations_that_make_no_sense(case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Left out, counted and said once; the others are used."""
    difference, reason = CASES[case]
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps({**VALID, "annotations": [GOOD, {**GOOD, "id": 2, **difference}]}))
    register_coco("odd", path, tmp_path)
    with caplog.at_level("WARNING", logger="detectron2.piip"):
        (record,) = dataset_dicts("odd")
    assert len(record["annotations"]) == (1 if reason else 2)
    # Detectron2's formatter, once installed, shortens the logger's name in the record itself
    said = [entry.getMessage() for entry in caplog.records if entry.name in ("detectron2.piip", "d2.piip")]
    assert len(said) == bool(reason)
    assert not reason or f"1 {reason}" in said[0]


def test_images_with_one_id(tmp_path: Path) -> None:
    second = {**VALID["images"][0], "file_name": "b.png"}
    path = tmp_path / "annotations.json"
    good = {"id": 2, "file_name": "good.png", "height": 4, "width": 4}
    content = {**VALID, "images": [*VALID["images"], second, good, good]}
    content["annotations"] = [GOOD, {**GOOD, "id": 2, "image_id": 2}]
    path.write_text(json.dumps(content))
    register_coco("twice", path, tmp_path)
    assert [Path(record["file_name"]).name for record in dataset_dicts("twice")] == ["good.png"]
    left_out = sensible_annotations(content).left_out
    assert left_out == {
        "images with the id of another": 2,
        "images listed twice": 1,
        "annotations of an unknown image": 1,
    }


def test_what_is_mended() -> None:
    """Files put together from several have ids twice; COCO's evaluation takes id 0 for no match."""
    other = {**GOOD, "bbox": [1, 1, 2, 2], "segmentation": [SQUARE, [0, 0, 1]]}
    bare = {key: GOOD[key] for key in ("image_id", "category_id", "bbox")}
    annotations = [GOOD, other, {**bare, "id": 0, "segmentation": [SQUARE]}]
    sensible = sensible_annotations({**VALID, "annotations": annotations})
    assert not sensible.left_out
    assert sensible.mended == {
        "annotations whose id is 0 or that of another": 3,
        "masks with polygons of fewer than three corners": 1,
        "annotations without an area": 1,
        "annotations that do not say whether they are a crowd": 1,
    }
    kept = sensible.content["annotations"]
    assert [annotation["id"] for annotation in kept] == [1, 2, 3]
    assert [annotation["area"] for annotation in kept] == [4, 4, 4.0]
    assert kept[1]["segmentation"] == [SQUARE]


def test_a_sound_file_is_left_as_it_is() -> None:
    content = {**VALID, "annotations": [GOOD]}
    sensible = sensible_annotations(content)
    assert sensible.content == content
    assert str(sensible) == ""


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
