"""Images and their label maps: pairs of files, read, checked and augmented."""

from __future__ import annotations

import copy
import logging
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import detectron2.data.transforms as T
import numpy as np
import numpy.typing as npt
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import check_image_size
from detectron2.utils.logger import log_first_n

from ..images import list_files, open_image, open_labels, printable
from .heads import IGNORED

__all__ = ["SemanticMapper", "read_labels", "register_folders", "semantic_dicts"]

_logger = logging.getLogger("detectron2.piip")
_LOOKED_AT = 500  # label maps in which the classes are looked for

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
    """A record for each image that has a label map of its own; the log counts the others once."""
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for file in list_files(images):
        by_stem[file.stem].append(file)
    alone = [files[0] for files in by_stem.values() if len(files) == 1]
    shared = [file for files in by_stem.values() if len(files) > 1 for file in files]
    pairs = [(image, labels / f"{image.stem}.png") for image in alone]
    missing = [image for image, label in pairs if not label.is_file()]
    for left_out, reason in (
        (missing, "without a label map"),
        (shared, "that share a label map with another"),
    ):
        if left_out:
            said = f"left out {len(left_out)} images {reason}, such as {printable(left_out[0])}"
            log_first_n(logging.WARNING, f"{printable(images)}: {said}", name=_logger.name, key="message")
    return [
        {"file_name": str(image), "sem_seg_file_name": str(label)}
        for image, label in pairs
        if label.is_file()
    ]


def _check_labels(name: str, records: Sequence[Mapping[str, Any]]) -> None:
    """Log once which classes of a dataset have no pixel, in all its label maps or in some of them.

    Raises:
        ValueError: none of them can be used.
    """
    metadata = MetadataCatalog.get(name)
    chosen = np.linspace(0, len(records) - 1, min(_LOOKED_AT, len(records))).astype(int)
    files = tuple(records[index]["sem_seg_file_name"] for index in chosen)
    ignore_label = metadata.get("ignore_label", IGNORED)
    pixels, unreadable = _count_pixels(files, len(metadata.stuff_classes), ignore_label)
    if len(unreadable) == len(files):
        raise ValueError(
            f"dataset '{name}': none of {len(files)} label maps can be used, such as {unreadable[0]}"
        )
    unseen = [f"{i} '{c}'" for i, c in enumerate(metadata.stuff_classes) if not pixels[i]]
    if not unseen:
        return
    all_of = len(files) == len(records)
    looked_at = "all" if all_of else f"{len(files)} of"
    said = [f"{name}: no pixel of class {', '.join(unseen)} in {looked_at} {len(records)} label maps"]
    if pixels[IGNORED]:
        share = 100 * pixels[IGNORED] / sum(pixels)
        said.append(f"{share:.2g}% of the pixels are {ignore_label}, which is ignored and no class")
    if unreadable:
        said.append(f"{len(unreadable)} cannot be used, such as: {unreadable[0]}")
    level = logging.WARNING if all_of else logging.INFO
    log_first_n(level, "; ".join(said), name=_logger.name, key="message")


@lru_cache(maxsize=8)  # a test set is loaded for every evaluation
def _count_pixels(files: tuple[str, ...], num_classes: int, ignore_label: int) -> tuple[list[int], list[str]]:
    """Pixels by class, until all classes were seen, and what is wrong with the maps that cannot be used."""
    pixels, unreadable = np.zeros(256, np.int64), []
    for file in files:
        try:
            pixels += np.bincount(read_labels(file, num_classes, ignore_label).ravel(), minlength=256)
        except ValueError as error:
            unreadable.append(str(error))
        if pixels[:num_classes].all():
            break
    return pixels.tolist(), unreadable


def semantic_dicts(names: str | Sequence[str]) -> list[dict[str, Any]]:
    """The records of registered datasets, with "file_name" and "sem_seg_file_name".

    Raises:
        KeyError: a name is not registered.
        FileNotFoundError: a folder is missing.
        ValueError: a dataset has no image with a label map, or none of the label maps can be used.
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
        _check_labels(name, found)
        records += found
    return records
