"""Segmentors on any folder of images and label maps: registered, and the config's classes made theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ..engine.checkpoints.checkpoint import ClassShapes
from ..engine.data.custom_data import LOADERS, class_shapes, set_num_classes, splits
from .data import register_folders

__all__ = ["FolderData", "Folders"]

_FORM = "IMAGES:LABELS"
_NAMES = "classes.txt"


@dataclass(frozen=True)
class Folders:
    """A folder of images and one of label maps."""

    images: Path
    labels: Path

    @classmethod
    def parse(cls, text: str) -> Folders:
        """Read ``IMAGES:LABELS``; names may hold colons themselves: what counts is where two folders are.

        Raises:
            FileNotFoundError: a folder is not there.
        """
        colons = [position for position, letter in enumerate(text) if letter == ":"]
        for colon in colons:
            folders = cls(Path(text[:colon]).expanduser(), Path(text[colon + 1 :]).expanduser())
            if folders.images.is_dir() and folders.labels.is_dir():
                return folders
        raise FileNotFoundError(f"'{text}' does not name two folders: --data expects [train=|val=]{_FORM}")

    def classes(self) -> list[str]:
        """Names of the classes 0, 1, ...: lines of `classes.txt` in the folder of the labels, or above it.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is empty, or has a name twice.
        """
        for folder in (self.labels, self.labels.parent):
            if (file := folder / _NAMES).is_file():
                break
        else:
            raise FileNotFoundError(
                f"{self.labels / _NAMES} does not exist: write the names of the classes 0, 1, ... there, one "
                "a line"
            )
        names = [line.strip() for line in file.read_text().splitlines() if line.strip()]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"{file} must name one class a line, each once: it has {len(names)} lines")
        return names


class FolderData:
    """What `--data` means for segmentors: folders of images and label maps, for training and validation."""

    def use(self, cfg: DictConfig, data: Sequence[str], *, train: bool = True) -> ClassShapes:
        """Make a segmentor's config one for other data, in place.

        Registers the splits as "own_train" and "own_val", names them in the data loaders and the evaluator,
        and replaces the number of classes wherever the model holds it.

        Args:
            cfg: a LazyConfig of a segmentor.
            data: "train=IMAGES:LABELS" and "val=...", or one without a split for both.
            train: whether the training split is needed.

        Returns:
            The parameters that follow the number of classes.

        Raises:
            ValueError: a split is missing, given twice, or has other classes than the other one.
            FileNotFoundError: a folder, or the names of the classes, are not there.
        """
        folders = splits(data, Folders.parse, _FORM, train=train)
        classes = folders["val"].classes()
        for split, pair in folders.items():
            if pair.classes() != classes:
                raise ValueError(
                    f"{pair.labels} and {folders['val'].labels} have different classes: both need the same"
                )
            name = f"own_{split}"
            register_folders(name, pair.images, pair.labels, classes)
            cfg.dataloader[LOADERS[split]].dataset.names = name
        for loader in (cfg.dataloader.train, cfg.dataloader.test):
            loader.mapper.num_classes = len(classes)
        return class_shapes(cfg, len(classes), "heads.decode_head")

    def follow(self, cfg: DictConfig, metadata: Mapping[str, Any]) -> None:
        """Give the config's segmentor, in place, the number of classes that a checkpoint names."""
        if classes := metadata.get("stuff_classes"):
            set_num_classes(cfg, len(classes), "heads.decode_head")
