"""COCO-format datasets: what is said of those that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ... import require

require.detectron2()

from piip.detection.data import dataset_dicts, register_coco

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
