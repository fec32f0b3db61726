"""COCO-format datasets that say what is wrong with them, and are used without it where they can be."""

from __future__ import annotations

import json
import logging
import math
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.datasets import load_coco_json

_logger = logging.getLogger("detectron2.piip")
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
    annotations, images = os.fspath(json_file), os.fspath(image_root)
    DatasetCatalog.register(name, lambda: _load_sensible(annotations, images, name))
    MetadataCatalog.get(name).set(
        json_file=annotations, image_root=images, evaluator_type="coco", **(metadata or {})
    )


def _load_sensible(json_file: str, image_root: str, name: str) -> list[dict[str, Any]]:
    """Records of what makes sense in an annotation file; the log says once what does not, and how much."""
    try:
        content = json.loads(Path(json_file).read_text())
        sensible, dropped = drop_nonsense(content)
    except (ValueError, KeyError, TypeError, AttributeError):
        # no COCO file at all: Detectron2 fails on it, and `dataset_dicts` says what is wrong
        sensible, dropped = {}, Counter()
    records: list[dict[str, Any]]
    if not dropped:
        records = load_coco_json(json_file, image_root, name)
        return records
    what = ", ".join(f"{count} {reason}" for reason, count in dropped.most_common())
    _logger.warning(f"{json_file}: left out what cannot be used: {what}")
    with tempfile.TemporaryDirectory() as folder:  # Detectron2 reads files
        file = Path(folder, Path(json_file).name)
        file.write_text(json.dumps(sensible))
        records = load_coco_json(str(file), image_root, name)
    return records


def drop_nonsense(content: dict[str, Any]) -> tuple[dict[str, Any], Counter[str]]:
    """Annotations without those that nothing can be learned from.

    Left out are images and annotations whose id was there before, annotations of no known image or category,
    boxes that are no four finite numbers, have no area or lie outside their image, and, where other
    annotations of the file have masks, those without one or with one of another size than the image.

    Args:
        content: a COCO annotation file. It is not changed.

    Returns:
        The file without them, and how many were left out for which reason.
    """
    dropped: Counter[str] = Counter()
    images: dict[Any, dict[str, Any]] = {}
    for image in content["images"]:
        if image["id"] in images:
            dropped["images with the id of another"] += 1
        else:
            images[image["id"]] = image
    categories = {category["id"] for category in content["categories"]}
    with_masks = any(annotation.get("segmentation") for annotation in content["annotations"])
    annotations: dict[Any, dict[str, Any]] = {}
    for annotation in content["annotations"]:
        if annotation["id"] in annotations:
            dropped["annotations with the id of another"] += 1
        elif reason := _nonsense(annotation, images, categories, with_masks):
            dropped[f"annotations {reason}"] += 1
        else:
            annotations[annotation["id"]] = annotation
    return {**content, "images": list(images.values()), "annotations": list(annotations.values())}, dropped


def _nonsense(
    annotation: dict[str, Any], images: dict[Any, dict[str, Any]], categories: set[Any], with_masks: bool
) -> str:
    """Why an annotation cannot be used; empty where it can."""
    image = images.get(annotation["image_id"])
    if image is None:
        return "of an unknown image"
    if annotation["category_id"] not in categories:
        return "of an unknown category"
    box = annotation.get("bbox")
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_finite, box))):
        return "without a box of four numbers"
    x, y, width, height = box
    if width <= 0 or height <= 0:
        return "whose box has no area"
    if x >= image["width"] or y >= image["height"] or x + width <= 0 or y + height <= 0:
        return "whose box is outside the image"
    mask = annotation.get("segmentation")
    if with_masks and not mask:
        return "without a mask"
    if isinstance(mask, dict) and list(mask.get("size", ())) != [image["height"], image["width"]]:
        return "whose mask is not of the image's size"
    return ""


def _is_finite(number: Any) -> bool:
    return isinstance(number, int | float) and math.isfinite(number)


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
