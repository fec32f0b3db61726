"""COCO-format datasets that say what is wrong with them, and are used without it where they can be."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.datasets import load_coco_json

from .annotations import sensible_annotations, what_is_not_coco

_logger = logging.getLogger("detectron2.piip")
_SMALLEST_SIDE = 32  # px, of images that mmdetection trains on


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
    """Records of what makes sense in an annotation file; the log says once what does not, and how much.

    Annotations to be ignored, which Detectron2 refuses, become crowds: nothing is learned from either.
    """

    def load(file: str) -> list[dict[str, Any]]:
        records: list[dict[str, Any]] = load_coco_json(file, image_root, name, ["area"])
        return records

    try:
        sensible = sensible_annotations(json.loads(Path(json_file).read_text()))
    except (ValueError, KeyError, TypeError, AttributeError):
        # no COCO file at all: Detectron2 fails on it, and `dataset_dicts` says what is wrong
        return load(json_file)
    annotations = sensible.content["annotations"]
    ignored = [place for place, annotation in enumerate(annotations) if annotation.get("ignore")]
    for place in ignored:
        annotations[place] = {**annotations[place], "ignore": 0, "iscrowd": 1}
    changes = [str(sensible)] if str(sensible) else []
    if ignored:
        changes.append(f"not trained on are {len(ignored)} annotations to be ignored")
    if not changes:
        return load(json_file)
    _logger.warning(f"{json_file}: {'; '.join(changes)}")
    with tempfile.TemporaryDirectory() as folder:  # Detectron2 reads files
        file = Path(folder, Path(json_file).name)
        file.write_text(json.dumps(sensible.content))
        return load(str(file))


def _published_records(name: str) -> list[dict[str, Any]]:
    """The images of a registered dataset that mmdetection trains on."""
    metadata = MetadataCatalog.get(name)
    if "json_file" in metadata.as_dict():  # Detectron2's own records have no areas
        records = _load_sensible(metadata.json_file, metadata.image_root, name)
    else:
        records = DatasetCatalog.get(name)
    return [r for r in records if r["annotations"] and min(r["height"], r["width"]) >= _SMALLEST_SIDE]


def _what_is_not_coco(path: Path) -> str:
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        return f"it is not JSON ({error})"
    return what_is_not_coco(content)


def dataset_dicts(
    names: str | Sequence[str],
    *,
    filter_empty: bool = True,
    rules: Literal["detectron2", "mmdetection"] = "detectron2",
) -> list[dict[str, Any]]:
    """The records of registered datasets, in Detectron2's standard format.

    Args:
        names: one registered name or several.
        filter_empty: leave out images that show nothing to learn.
        rules: which these are: for "detectron2" images without annotations or with crowds only, for
            "mmdetection" images without annotations or with a side below 32 px.

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
        records: list[dict[str, Any]]
        if filter_empty and rules == "mmdetection":
            records = [record for name in names for record in _published_records(name)]
            if not records:
                raise ValueError("no image has an annotation")
        else:
            records = get_detection_dataset_dicts(names, filter_empty=filter_empty)
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
