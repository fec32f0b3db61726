"""The shapes dataset: COCO's format, the range of sizes it promises, the same bytes for the same seed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ... import require

require.detectron2()

import cv2
from detectron2.data import MetadataCatalog
from pycocotools import mask as coco_mask

from piip.detection.data import dataset_dicts
from piip.quick.shapes import CLASSES, draw_scene, register, write_split


def scenes(number: int, size: int = 128):
    return [draw_scene(np.random.default_rng(seed), size) for seed in range(number)]


def test_sizes_run_from_8_pixels_to_most_of_the_image() -> None:
    """Over 100 scenes: COCO's small, medium and large all occur, crowds too, and every class."""
    drawn = scenes(100)
    areas = np.array([mask.sum() for _, masks, _ in drawn for mask in masks])
    extents = np.array([max(np.ptp(np.nonzero(mask), axis=1) + 1) for _, masks, _ in drawn for mask in masks])
    assert (areas < 32**2).sum() > 100
    assert ((areas >= 32**2) & (areas < 96**2)).sum() > 30
    assert (areas >= 96**2).sum() >= 3  # else AP large would be undefined
    assert np.percentile(extents, 2) <= 10
    assert extents.max() > 0.8 * 128
    assert max(len(masks) for _, masks, _ in drawn) >= 15
    assert {label for _, _, labels in drawn for label in labels} == set(range(len(CLASSES)))


def test_masks_are_of_visible_pixels() -> None:
    """Where objects overlap, a pixel belongs to the one in front only; some overlap does occur."""
    touching = 0
    for _, masks, labels in scenes(20):
        assert len(masks) == len(labels)
        assert np.sum(masks, axis=0).max(initial=0) <= 1
        boxes = [(np.min(np.nonzero(m), axis=1), np.max(np.nonzero(m), axis=1)) for m in masks]
        touching += sum(
            bool((a[0] <= b[1]).all() and (b[0] <= a[1]).all())
            for i, a in enumerate(boxes)
            for b in boxes[:i]
        )
    assert touching > 10


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_split(tmp_path / name, "train", 2, 64, seed)
    content = {
        name: [path.read_bytes() for path in sorted((tmp_path / name).rglob("*.*"))]
        for name in ("a", "b", "c")
    }
    assert content["a"] == content["b"]
    assert content["a"] != content["c"]


def test_a_longer_dataset_begins_like_a_shorter_one(tmp_path: Path) -> None:
    """Image i depends on its number, not on how many there are."""
    short, long = (write_split(tmp_path / str(n), "val", n, 64, 0).parent / "val/000000.png" for n in (1, 3))
    assert short.read_bytes() == long.read_bytes()


def test_annotations_are_coco(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Boxes and areas are those of the masks; Detectron2 reads the file back to the same objects."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for split in ("train", "val"):
        path = write_split(tmp_path / "shapes", split, 3, 96, 0)
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        mask = coco_mask.decode(annotation["segmentation"])
        assert mask.shape == (96, 96)
        assert annotation["area"] == mask.sum()
        (top, left), (bottom, right) = np.min(np.nonzero(mask), axis=1), np.max(np.nonzero(mask), axis=1)
        assert annotation["bbox"] == [left, top, right - left + 1, bottom - top + 1]
    register()
    register()  # configs are loaded more than once
    records = dataset_dicts(["shapes_train", "shapes_val"])
    assert MetadataCatalog.get("shapes_val").thing_classes == list(CLASSES)
    assert len(records) == 6
    assert cv2.imread(records[0]["file_name"]).shape == (96, 96, 3)


def test_image_too_small() -> None:
    with pytest.raises(ValueError, match="image size 16 is too small for shapes: use at least 32"):
        draw_scene(np.random.default_rng(0), 16)
