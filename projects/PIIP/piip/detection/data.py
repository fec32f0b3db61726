"""COCO-format datasets in Detectron2's catalog, of annotations that were checked."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import BoxMode
from detectron2.utils.logger import log_first_n

from ..engine.checkpoints.checkpoint import describe
from .annotations import SanitizedAnnotations, read_annotations

_logger = logging.getLogger("detectron2.piip")
_SMALLEST_SIDE = 32  # px, of images that mmdetection trains on
_findings: dict[str, str] = {}  # of datasets that were read, by name

__all__ = ["dataset_dicts", "describe_classes", "register", "register_coco"]


def register_coco(
    name: str,
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Register a COCO-format dataset under `name`; a second call with the same name replaces the first.

    LazyConfig files run each time they are loaded, so registering must not fail the second time as
    Detectron2's does.

    Args:
        name: what configs call the dataset.
        json_file: its annotations, in COCO's instances format; see
            :func:`~piip.detection.annotations.sanitize_annotations` for what of them is used.
        image_root: the folder that its file names are relative to.
        metadata: more of what Detectron2 should know about it, such as "thing_classes", "thing_colors" and
            "thing_dataset_id_to_contiguous_id"; without it classes are known once the annotations are read.
    """
    register(name, json_file, image_root, metadata, evaluator_type="coco", read=read_annotations)


def register(
    name: str,
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    metadata: Mapping[str, Any] | None,
    *,
    evaluator_type: str,
    read: Callable[[str], SanitizedAnnotations],
) -> None:
    """:func:`register_coco` for any format that `read` makes COCO's of."""
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    file, images = os.fspath(json_file), os.fspath(image_root)
    DatasetCatalog.register(name, lambda: _records(name, images, read(file)))
    MetadataCatalog.get(name).set(
        json_file=file, image_root=images, evaluator_type=evaluator_type, **(metadata or {})
    )


def describe_classes(name: str, categories: Sequence[Mapping[str, Any]]) -> None:
    """Add a dataset's classes to Detectron2's catalog.

    Raises:
        ValueError: it knows other classes.
    """
    metadata = MetadataCatalog.get(name)
    names = {category["id"]: category["name"] for category in categories}
    ids = {id_: number for number, id_ in enumerate(sorted(names))}
    classes = [names[id_] for id_ in ids]
    known = metadata.get("thing_classes", classes)
    # LVIS's own files name classes otherwise than Detectron2
    same_names = known == classes or metadata.evaluator_type == "lvis"
    if metadata.get("thing_dataset_id_to_contiguous_id", ids) != ids or not same_names:
        raise ValueError(
            f"{metadata.json_file} has {describe(classes)}, dataset '{name}' {describe(known)}: give the "
            "file as --data"
        )
    found = {"thing_classes": classes, "thing_dataset_id_to_contiguous_id": ids}
    metadata.set(**{key: value for key, value in found.items() if metadata.get(key) is None})


def _records(name: str, image_root: str, checked: SanitizedAnnotations) -> list[dict[str, Any]]:
    """A dataset in Detectron2's standard format; the log says once what was skipped and fixed."""
    metadata = MetadataCatalog.get(name)
    _findings[name] = str(checked)
    if str(checked):
        log_first_n(logging.WARNING, f"{metadata.json_file}: {checked}", name=_logger.name, key="message")
    describe_classes(name, checked.content["categories"])
    annotations = defaultdict(list)
    for annotation in checked.content.get("annotations", ()):
        annotations[annotation["image_id"]].append(
            _object(annotation, metadata.thing_dataset_id_to_contiguous_id[annotation["category_id"]])
        )
    return [
        {
            "file_name": os.path.join(image_root, image["file_name"]),
            "image_id": image["id"],
            "height": image["height"],
            "width": image["width"],
            "annotations": annotations[image["id"]],
        }
        for image in sorted(checked.content["images"], key=lambda image: image["id"])
    ]


def _object(annotation: Mapping[str, Any], label: int) -> dict[str, Any]:
    """One object of an image's record."""
    kept = {key: annotation[key] for key in ("iscrowd", "bbox", "area")}
    kept |= {"bbox_mode": BoxMode.XYWH_ABS, "category_id": label}
    if mask := annotation.get("segmentation"):
        kept["segmentation"] = mask
    if keypoints := annotation.get("keypoints"):  # pixels become coordinates, visibility stays
        kept["keypoints"] = [value + 0.5 * (number % 3 != 2) for number, value in enumerate(keypoints)]
    return kept


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
        _check_when_read(name)
        path = Path(MetadataCatalog.get(name).get("json_file", ""))
        if path.name and not path.is_file():
            raise FileNotFoundError(
                f"annotation file {path} of dataset '{name}' does not exist: "
                "put the dataset there, or set DETECTRON2_DATASETS to the folder that holds it"
            )
    records: list[dict[str, Any]] = []
    reason = f"no image of {_SMALLEST_SIDE} px or more has an annotation"
    try:
        if rules == "detectron2" or not filter_empty:
            records = get_detection_dataset_dicts(names, filter_empty=filter_empty)
        else:
            records = [record for name in names for record in DatasetCatalog.get(name)]
            records = [
                r for r in records if r["annotations"] and min(r["height"], r["width"]) >= _SMALLEST_SIDE
            ]
    except AssertionError as error:  # Detectron2's: there is no image, or none with an object
        reason = str(error).rstrip("!.")
    if not records:
        files = ", ".join(str(MetadataCatalog.get(name).get("json_file", name)) for name in names)
        reasons = "; ".join(filter(None, [reason, *map(_findings.get, names)]))
        raise ValueError(f"{files} cannot be used: {reasons}")
    return records


def _check_when_read(name: str) -> None:
    """Have a COCO dataset that Detectron2 registered read by :func:`read_annotations`, too."""
    if DatasetCatalog.data[name].__module__ == register_coco_instances.__module__:
        known = MetadataCatalog.get(name)
        DatasetCatalog.remove(name)
        DatasetCatalog.register(
            name, lambda: _records(name, known.image_root, read_annotations(known.json_file))
        )
