"""Detectors on any COCO-format data: registered, and the config's classes made theirs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from detectron2.config import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from ..engine.checkpoint import ClassShapes
from .data import register_coco

__all__ = ["CocoData", "CocoFiles", "class_shapes", "set_num_classes"]

_LOADERS = {"train": "train", "val": "test"}  # splits on the command line: their loaders in the config
_FORM = "[train=|val=]ANNOTATIONS.json[:IMAGES]"
_LOOKED_AT = 100  # images whose files are looked for before training


@dataclass(frozen=True)
class CocoFiles:
    """Annotations, and the folder that their file names are relative to."""

    annotations: Path
    images: Path

    @classmethod
    def parse(cls, text: str) -> CocoFiles:
        """Read ``ANNOTATIONS.json:IMAGES``; without a folder the images lie beside the annotations.

        Names may hold colons themselves: what counts is where a file and a folder are.

        Raises:
            FileNotFoundError: a file or folder is not there.
        """
        colons = [position for position, letter in enumerate(text) if letter == ":"]
        readings = [(text[:colon], text[colon + 1 :]) for colon in colons]
        readings.append((text, str(Path(text).parent)))
        candidates = [cls(Path(a).expanduser(), Path(b).expanduser()) for a, b in readings]
        for files in candidates:
            if files.annotations.is_file() and files.images.is_dir():
                return files
        without_folder = next((files for files in candidates if files.annotations.is_file()), None)
        if without_folder:
            raise FileNotFoundError(
                f"image folder {without_folder.images} does not exist: --data expects {_FORM}"
            )
        likely = next((files for files in candidates if files.annotations.suffix == ".json"), candidates[0])
        raise FileNotFoundError(f"annotations {likely.annotations} do not exist: --data expects {_FORM}")

    @cached_property
    def content(self) -> dict[str, Any]:
        """What the annotation file holds.

        Raises:
            ValueError: it is not JSON, or no object with the lists that COCO's have.
        """
        try:
            content = json.loads(self.annotations.read_text())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{self.annotations} is not JSON: {error}") from error
        for section in ("images", "annotations", "categories"):
            if not (isinstance(content, dict) and isinstance(content.get(section), list)):
                raise ValueError(
                    f"{self.annotations} is not a COCO annotation file: it has no list '{section}'"
                )
        return dict(content)

    def categories(self) -> dict[int, str]:
        """Names of the classes by their ids, in the order of the ids.

        Raises:
            ValueError: the file has none, or one without id or name, or an id twice.
        """
        entries = self.content["categories"]
        try:
            names = {int(entry["id"]): str(entry["name"]) for entry in entries}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.annotations}: every category needs a whole number 'id' and a 'name'"
            ) from error
        if not names:
            raise ValueError(f"{self.annotations} has no categories: name the classes to learn")
        if len(names) != len(entries):
            raise ValueError(f"{self.annotations}: two categories have the same id")
        return dict(sorted(names.items()))

    def check_images(self) -> None:
        """Look for some of the images.

        Raises:
            FileNotFoundError: none of them is there.
        """
        some = [str(image.get("file_name")) for image in self.content["images"][:_LOOKED_AT]]
        if some and not any((self.images / name).is_file() for name in some):
            raise FileNotFoundError(
                f"images of {self.annotations} are not where they should be, such as "
                f"{self.images / some[0]}: --data expects {_FORM}"
            )

    def has_masks(self) -> bool:
        """Whether any object has a mask."""
        return any(annotation.get("segmentation") for annotation in self.content["annotations"])

    def has_run_lengths(self) -> bool:
        """Whether the mask of an object that is no crowd is given by run lengths, not polygons."""
        return any(
            isinstance(annotation.get("segmentation"), dict) and not annotation.get("iscrowd")
            for annotation in self.content["annotations"]
        )


class CocoData:
    """What `--data` means for detectors: COCO-format annotations and images, for training and validation."""

    def use(self, cfg: DictConfig, data: Sequence[str], *, train: bool = True) -> ClassShapes:
        """Make a detector's config one for other data, in place.

        Registers the splits as "own_train" and "own_val", names them in the data loaders and the evaluator,
        replaces the number of classes wherever the model holds it, and has masks kept as bitmaps where
        polygons could not hold them.

        Args:
            cfg: a LazyConfig of a detector.
            data: "train=ANNOTATIONS.json:IMAGES" and "val=...", or one without a split for both; see
                :meth:`CocoFiles.parse`.
            train: whether the training split is needed.

        Returns:
            The parameters that follow the number of classes.

        Raises:
            ValueError: a split is missing, given twice, or has other classes than the other one; the model
                has no number of classes; or it learns masks, of which there are none.
            FileNotFoundError: a file or folder is not there, or none of the images.
        """
        splits = _splits(data)
        if missing := [s for s in _LOADERS if s not in splits and (train or s == "val")]:
            raise ValueError(
                f"--data has no {missing[0]} set: give {missing[0]}=ANNOTATIONS.json:IMAGES, too"
            )
        classes = splits["val"].categories()
        for split, files in splits.items():
            if files.categories() != classes:
                raise ValueError(
                    f"{files.annotations} and {splits['val'].annotations} have different categories: both "
                    "need the same ids and names"
                )
            files.check_images()
            name = f"own_{split}"
            metadata = {
                "thing_classes": list(classes.values()),
                "thing_dataset_id_to_contiguous_id": {id_: i for i, id_ in enumerate(classes)},
            }
            register_coco(name, files.annotations, files.images, metadata)
            cfg.dataloader[_LOADERS[split]].dataset.names = name
        if "dataset_name" in cfg.dataloader.get("evaluator", {}):
            cfg.dataloader.evaluator.dataset_name = "own_val"
        if train:
            _prepare_masks(cfg, splits["train"])
        return class_shapes(cfg, len(classes))

    def follow(self, cfg: DictConfig, metadata: Mapping[str, Any]) -> None:
        """Give the config's detector, in place, the number of classes that a checkpoint names."""
        if classes := metadata.get("thing_classes"):
            set_num_classes(cfg, len(classes))


def _splits(data: Sequence[str]) -> dict[str, CocoFiles]:
    """Files by split.

    Raises:
        ValueError: a split is given twice.
    """
    splits: dict[str, CocoFiles] = {}
    for text in data:
        split, equals, rest = text.partition("=")
        named = bool(equals) and split in _LOADERS
        files = CocoFiles.parse(rest if named else text)
        for name in [split] if named else _LOADERS:
            if name in splits:
                raise ValueError(f"--data gives the {name} set twice: {' '.join(data)}")
            splits[name] = files
    return splits


def _prepare_masks(cfg: DictConfig, files: CocoFiles) -> None:
    """Have the config take the data's kind of masks.

    Raises:
        ValueError: the model learns masks, and there are none.
    """
    if not files.has_masks() and OmegaConf.select(cfg, "model.roi_heads.mask_in_features") is not None:
        raise ValueError(
            f"{files.annotations} has boxes only, the config's model learns masks, too: add "
            "model.roi_heads.mask_in_features=null to learn boxes only (from a checkpoint without mask head)"
        )
    if files.has_run_lengths() and "mapper" in cfg.dataloader.train:
        cfg.dataloader.train.mapper.instance_mask_format = "bitmask"


def set_num_classes(cfg: DictConfig, number: int) -> None:
    """Replace a detector's number of classes wherever its model holds it, in place.

    It is the `num_classes` of the model itself or of its `roi_heads`, and every other `num_classes` in the
    model that has the same value, such as that of a loss.

    Raises:
        ValueError: the model has no number of classes.
    """
    for node in _class_counts(cfg.model):
        node.num_classes = number


def class_shapes(cfg: DictConfig, number: int) -> ClassShapes:
    """:func:`set_num_classes`, and which parameters follow it: those whose shape one class more changes."""
    nodes, shapes = _class_counts(cfg.model), []
    for count in (number + 1, number):
        for node in nodes:
            node.num_classes = count
        with torch.device("meta"):
            state = instantiate(cfg.model).state_dict()
        shapes.append({key: tensor.shape for key, tensor in state.items()})
    more, these = shapes
    return {
        key: tuple(a if a == b else None for a, b in zip(shape, more[key], strict=True))
        for key, shape in these.items()
        if shape != more[key]
    }


def _class_counts(model: DictConfig) -> list[DictConfig]:
    """Sections of a model whose `num_classes` is the detector's.

    Raises:
        ValueError: there are none.
    """
    places = list(_with_num_classes(model))
    own = [node for path, node in places if path in ("", "roi_heads")]
    if not own:
        raise ValueError("the config's model has no num_classes (of its own or of its roi_heads) to change")
    return [node for _, node in places if node.num_classes == own[0].num_classes]


def _with_num_classes(node: Any, path: str = "") -> Iterator[tuple[str, DictConfig]]:
    """Sections that hold a `num_classes` of their own, with their place in the model."""
    own = isinstance(node, DictConfig) and "num_classes" in node
    if own and not OmegaConf.is_interpolation(node, "num_classes"):
        yield path, node
    if isinstance(node, DictConfig | ListConfig):
        for key in range(len(node)) if isinstance(node, ListConfig) else node:
            if not OmegaConf.is_interpolation(node, key):
                yield from _with_num_classes(node[key], f"{path}.{key}".lstrip("."))
