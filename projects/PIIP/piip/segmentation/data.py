"""Images and their label maps: pairs of files, read, checked and augmented."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import detectron2.data.transforms as T
import numpy as np
import numpy.typing as npt
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import check_image_size

from ..images import list_files, open_image, open_labels
from .heads import IGNORED

__all__ = ["SemanticMapper", "read_labels", "register_folders", "semantic_dicts"]

_logger = logging.getLogger("detectron2.piip")

Labels = npt.NDArray[np.uint8]


def read_labels(path: str | os.PathLike[str], num_classes: int, ignore_label: int = IGNORED) -> Labels:
    """Classes ``(H, W)`` of a label map: a grey or palette PNG whose values, or indices, are classes.

    Raises:
        UnreadableFileError: it is missing, or no image that can be decoded.
        ValueError: it has several channels or more than 8 bits, or a value that is no class.
    """
    image = open_labels(path)
    if image.mode not in ("L", "P", "1"):
        raise ValueError(f"label map {path} has the mode {image.mode}: expected 8 bits, grey or a palette")
    labels: Labels = np.array(image, dtype=np.uint8)
    values = np.unique(labels)
    if (wrong := values[(values >= num_classes) & (values != ignore_label)]).size:
        raise ValueError(
            f"label map {path} holds {wrong[0]}: expected 0 to {num_classes - 1}, or {ignore_label} where a "
            "pixel is ignored"
        )
    labels[labels == ignore_label] = IGNORED
    return labels


class SemanticMapper:
    """Map a record in Detectron2's standard format to the input of :class:`Segmentor`.

    Detectron2's own mapper reads a palette's colours as classes and accepts any value.

    Args:
        is_train: read, check and augment the labels, too.
        augmentations: Detectron2's, applied to image and labels alike.
        image_format: "RGB" or "BGR".
        num_classes: labels are below it.
        ignore_label: value of pixels that have no class, in the files.
    """

    def __init__(
        self,
        *,
        is_train: bool,
        augmentations: Sequence[T.Augmentation | T.Transform],
        image_format: str,
        num_classes: int,
        ignore_label: int = IGNORED,
    ) -> None:
        self.is_train, self.image_format = is_train, image_format
        self.augmentations = T.AugmentationList(list(augmentations))
        self.num_classes, self.ignore_label = num_classes, ignore_label

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """Add "image" ``(3, H, W)`` uint8 and in training "sem_seg" ``(H, W)`` int64.

        Raises:
            UnreadableFileError: the image or label map is missing or cannot be decoded.
            ValueError: labels that are none, or of another size than the image.
        """
        record = copy.copy(record)
        rgb = np.asarray(open_image(record["file_name"]))
        image = rgb if self.image_format == "RGB" else rgb[:, :, ::-1]
        check_image_size(record, image)  # adds height and width where they are absent
        labels: Labels | None = None
        if self.is_train:
            labels = read_labels(record["sem_seg_file_name"], self.num_classes, self.ignore_label)
            if labels.shape != image.shape[:2]:
                raise ValueError(
                    f"{record['file_name']} has {image.shape[1]}x{image.shape[0]} px, its label map "
                    f"{record['sem_seg_file_name']} {labels.shape[1]}x{labels.shape[0]}: expected the same"
                )
        augmented = T.AugInput(image, sem_seg=labels)
        self.augmentations(augmented)
        record["image"] = torch.from_numpy(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
        if labels is not None:
            record["sem_seg"] = torch.from_numpy(augmented.sem_seg.astype(np.int64))
        return record


def register_folders(
    name: str,
    images: str | os.PathLike[str],
    labels: str | os.PathLike[str],
    classes: Sequence[str],
    **metadata: Any,
) -> None:
    """Register a folder of images and one of label PNGs of the same names under `name`, as "sem_seg" data.

    A second call with the same name replaces the first: LazyConfig files run each time they are loaded.

    Args:
        name: what configs call the dataset.
        images: folder of the images, of any common format.
        labels: folder of their label maps: ``x.png`` for ``x.jpg``.
        classes: names of the classes 0, 1, ...
        metadata: more of what Detectron2 should know, such as "stuff_colors".
    """
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, lambda: _pairs(Path(images), Path(labels)))
    MetadataCatalog.get(name).set(
        stuff_classes=list(classes),
        image_root=os.fspath(images),
        sem_seg_root=os.fspath(labels),
        evaluator_type="sem_seg",
        **{"ignore_label": IGNORED, **metadata},
    )


def _pairs(images: Path, labels: Path) -> list[dict[str, Any]]:
    """A record for each image that has a label map; the log says how many have none."""
    files = list_files(images)
    pairs = [(file, labels / f"{file.stem}.png") for file in files]
    if missing := [image for image, label in pairs if not label.is_file()]:
        _logger.warning(f"{images}: left out {len(missing)} images without a label map, such as {missing[0]}")
    return [
        {"file_name": str(image), "sem_seg_file_name": str(label)}
        for image, label in pairs
        if label.is_file()
    ]


def semantic_dicts(names: str | Sequence[str]) -> list[dict[str, Any]]:
    """The records of registered datasets, with "file_name" and "sem_seg_file_name".

    Raises:
        KeyError: a name is not registered.
        FileNotFoundError: a folder is missing.
        ValueError: a dataset has no image with a label map.
    """
    records: list[dict[str, Any]] = []
    for name in [names] if isinstance(names, str) else names:
        if name not in DatasetCatalog:
            raise KeyError(f"dataset '{name}' is not registered: register_folders(name, ...) does it")
        metadata = MetadataCatalog.get(name)
        for folder in (metadata.image_root, metadata.sem_seg_root):
            if not Path(folder).is_dir():
                hint = "; tools/prepare_ade20k.py makes the label maps" if "ade20k" in name else ""
                raise FileNotFoundError(f"dataset '{name}' is not there: folder {folder} is missing{hint}")
        found = DatasetCatalog.get(name)
        if not found:
            raise ValueError(f"dataset '{name}' has no image with a label map in {metadata.sem_seg_root}")
        records += found
    return records
