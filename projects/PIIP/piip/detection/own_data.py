"""Training on any COCO-format data: registered, and the config's classes made theirs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from ..engine.checkpoint import read_metadata
from .data import register_coco

__all__ = ["CocoFiles", "follow_weights", "set_num_classes", "use_own_data"]

SPLITS = {"train": "train", "val": "test"}  # as they are called on the command line and in the config


@dataclass(frozen=True)
class CocoFiles:
    """One split: its annotations and the folder of its images."""

    split: str
    annotations: Path
    images: Path

    @classmethod
    def parse(cls, text: str) -> CocoFiles:
        """Read ``train=ANNOTATIONS.json:IMAGES``; without images, they lie beside the annotations.

        Raises:
            ValueError: the text has another form.
            FileNotFoundError: a file or folder is not there.
        """
        match = re.fullmatch(r"(\w+)=(.+\.json)(?::(.+))?", text)
        if match is None or match[1] not in SPLITS:
            raise ValueError(f"data '{text}' is not of the form train=ANNOTATIONS.json:IMAGES (or val=...)")
        annotations = Path(match[2])
        images = Path(match[3]) if match[3] else annotations.parent
        if not annotations.is_file():
            raise FileNotFoundError(f"annotations {annotations} do not exist: check --data")
        if not images.is_dir():
            raise FileNotFoundError(f"image folder {images} does not exist: check --data")
        return cls(match[1], annotations, images)

    def categories(self) -> dict[int, str]:
        """Names of the classes by their ids, in the order of the ids.

        Raises:
            ValueError: the file holds none.
        """
        try:
            entries = json.loads(self.annotations.read_text())["categories"]
            names = {int(entry["id"]): str(entry["name"]) for entry in entries}
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.annotations} is not a COCO annotation file: it lacks 'categories' with ids and names"
            ) from error
        if not names:
            raise ValueError(f"{self.annotations} has no categories: name the classes to learn")
        return dict(sorted(names.items()))


def use_own_data(cfg: DictConfig, data: Sequence[str], *, train: bool = True) -> frozenset[str]:
    """Make a detector's config one for other data, in place.

    Registers the splits as "own_train" and "own_val", names them in the data loaders and the evaluator, and
    replaces the detector's number of classes wherever its model holds it.

    Args:
        cfg: a LazyConfig of a detector.
        data: "train=ANNOTATIONS.json:IMAGES" and "val=...", see :meth:`CocoFiles.parse`.
        train: whether the training split is needed.

    Returns:
        Names of the parameters whose shape follows the number of classes: a checkpoint of a detector of other
        classes fits the model but for these.

    Raises:
        ValueError: a split is missing, twice there, or has other classes than the other one; or the model has
            no number of classes.
        FileNotFoundError: a file or folder is not there.
    """
    splits = {files.split: files for files in map(CocoFiles.parse, data)}
    if len(splits) != len(data):
        raise ValueError(f"--data names a split twice: {' '.join(data)}")
    if missing := [split for split in ("train", "val") if split not in splits and (train or split == "val")]:
        raise ValueError(f"--data lacks {', '.join(missing)}: give {missing[0]}=ANNOTATIONS.json:IMAGES too")
    classes = splits["val"].categories()
    for split, files in splits.items():
        if files.categories() != classes:
            raise ValueError(f"categories of {split} and val differ: both need the same ids and names")
        name = f"own_{split}"
        metadata = {
            "thing_classes": list(classes.values()),
            "thing_dataset_id_to_contiguous_id": {id_: i for i, id_ in enumerate(classes)},
        }
        register_coco(name, files.annotations, files.images, metadata)
        cfg.dataloader[SPLITS[split]].dataset.names = name
    return set_num_classes(cfg, len(classes))


def follow_weights(cfg: DictConfig, weights: str) -> None:
    """Give a detector as many classes as its checkpoint was trained on, if that says so."""
    if classes := read_metadata(weights).get("thing_classes"):
        set_num_classes(cfg, len(classes))


def set_num_classes(cfg: DictConfig, number: int) -> frozenset[str]:
    """Replace a detector's number of classes wherever its model holds it.

    Returns:
        Names of the parameters whose shape follows it.

    Raises:
        ValueError: the model has no number of classes.
    """
    places = list(_class_counts(cfg.model))
    own = [node for path, node in places if path in ("", "roi_heads")]
    if not own:
        raise ValueError("the config's model has no num_classes (of its own or of its roi_heads) to change")
    old = own[0].num_classes
    followers = [node for _, node in places if node.num_classes == old]
    shapes = []
    for count in (number + 1, number):
        for node in followers:
            node.num_classes = count
        with torch.device("meta"):
            state = instantiate(cfg.model).state_dict()
        shapes.append({key: tensor.shape for key, tensor in state.items()})
    return frozenset(key for key, shape in shapes[0].items() if shape != shapes[1][key])


def _class_counts(node: Any, path: str = "") -> Iterator[tuple[str, DictConfig]]:
    """Sections that hold a `num_classes` of their own, with their place in the model."""
    own = isinstance(node, DictConfig) and "num_classes" in node
    if own and not OmegaConf.is_interpolation(node, "num_classes"):
        yield path, node
    if isinstance(node, DictConfig | ListConfig):
        for key in range(len(node)) if isinstance(node, ListConfig) else node:
            if not OmegaConf.is_interpolation(node, key):
                yield from _class_counts(node[key], f"{path}.{key}".lstrip("."))
