"""COCO-format datasets that say what is wrong with them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.datasets import register_coco_instances

_COCO_KEYS = {
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}


def register_coco(
    name: str,
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    metadata: dict[str, Any] | None = None,
) -> None:
    """Register a COCO-format dataset under `name`; a second call with the same name replaces the first.

    LazyConfig files run each time they are loaded, so registering must not fail the second time as
    Detectron2's does.

    Args:
        name: what configs call the dataset.
        json_file: its annotations, in COCO's instances format.
        image_root: the folder that its file names are relative to.
        metadata: more of what Detectron2 should know about it, such as "thing_classes", "thing_colors" and
            "thing_dataset_id_to_contiguous_id"; without it classes are known once the annotations are read.
    """
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    register_coco_instances(name, metadata or {}, os.fspath(json_file), os.fspath(image_root))


def _what_is_not_coco(path: Path) -> str:
    """What keeps a file from being COCO instance annotations; empty where nothing obvious does."""
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        return f"it is not JSON ({error})"
    if not isinstance(content, dict):
        return f"its top level is a {type(content).__name__}, expected an object"
    for section, keys in _COCO_KEYS.items():
        entries = content.get(section)
        if not isinstance(entries, list):
            return f"it has no list '{section}'"
        for position, entry in enumerate(entries):
            missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
            if missing:
                return f"{section}[{position}] lacks {', '.join(missing)}"
    known = {category["id"] for category in content["categories"]}
    for position, entry in enumerate(content["annotations"]):
        if entry["category_id"] not in known:
            return f"annotations[{position}] has category_id {entry['category_id']}, not among the categories"
    return ""


def dataset_dicts(names: str | Sequence[str], *, filter_empty: bool = True) -> list[dict[str, Any]]:
    """The records of registered datasets, in Detectron2's standard format.

    Args:
        names: one registered name or several.
        filter_empty: leave out images without annotations.

    Raises:
        KeyError: a name is not registered.
        FileNotFoundError: the annotation file of a dataset is missing.
        ValueError: the annotation file is not COCO instance annotations, or has no image to use.
    """
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
        if name not in DatasetCatalog:
            raise KeyError(
                f"dataset '{name}' is not registered: register_coco(name, json_file, image_root) does it"
            )
        path = Path(MetadataCatalog.get(name).get("json_file", ""))
        if path.name and not path.is_file():
            raise FileNotFoundError(
                f"annotation file {path} of dataset '{name}' does not exist: "
                "put the dataset there, or set DETECTRON2_DATASETS to the folder that holds it"
            )
    try:
        records: list[dict[str, Any]] = get_detection_dataset_dicts(names, filter_empty=filter_empty)
        if any(
            "bbox" not in annotation for record in records for annotation in record.get("annotations", ())
        ):
            raise KeyError("bbox")  # Detectron2 would fail on it in the middle of training
    except (AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        for path in (Path(MetadataCatalog.get(name).get("json_file", "")) for name in names):
            reason = _what_is_not_coco(path) if path.is_file() else ""
            if reason:
                raise ValueError(f"{path} is not a COCO annotation file: {reason}") from error
        raise ValueError(
            f"dataset {', '.join(names)} cannot be used: {error or type(error).__name__}"
        ) from error
    return records
