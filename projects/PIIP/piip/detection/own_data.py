"""Detectors on any COCO-format data: registered, and the config's classes made theirs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from omegaconf import DictConfig, OmegaConf

from ..engine.checkpoints.checkpoint import ClassShapes
from ..engine.data.custom_data import LOADERS, class_shapes, set_num_classes, splits
from .data import register_coco
from .mmdetection.rules import Rules, use_rules

__all__ = ["CocoData", "CocoFiles"]

_FORM = "[train=|val=]ANNOTATIONS.json[:IMAGES]"
_PLACES = ("", "roi_heads", "head")  # sections of a model that may hold its number of classes
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


@dataclass
class CocoData:
    """What `--data` means for detectors: COCO-format annotations and images, for training and validation.

    Attributes:
        rules: what a Mask R-CNN is trained by, see `piip.detection.mmdetection.rules.use_rules`.
    """

    rules: Rules = "detectron2"
    _files: ClassVar[type[CocoFiles]] = CocoFiles

    def use(self, cfg: DictConfig, data: Sequence[str], *, train: bool = True) -> ClassShapes:
        """Make a detector's config one for other data, in place.

        Registers the splits as "own_train" and "own_val", names them in the data loaders and the evaluator,
        replaces the number of classes wherever the model holds it, has the model trained by :attr:`rules`,
        and masks kept as bitmaps where polygons could not hold them.

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
        found = splits(data, self._files.parse, "ANNOTATIONS.json:IMAGES", train=train)
        classes = found["val"].categories()
        for split, files in found.items():
            if files.categories() != classes:
                raise ValueError(
                    f"{files.annotations} and {found['val'].annotations} have different categories: both "
                    "need the same ids and names"
                )
            files.check_images()
            name = f"own_{split}"
            metadata = {
                "thing_classes": list(classes.values()),
                "thing_dataset_id_to_contiguous_id": {id_: i for i, id_ in enumerate(classes)},
            }
            self._register(name, files, metadata)
            cfg.dataloader[LOADERS[split]].dataset.names = name
        if "dataset_name" in cfg.dataloader.get("evaluator", {}):
            cfg.dataloader.evaluator.dataset_name = "own_val"
        if train:
            use_rules(self.rules, cfg.model, cfg.dataloader)
            _prepare_masks(cfg, found["train"])
        return class_shapes(cfg, len(classes), *_PLACES)

    def _register(self, name: str, files: CocoFiles, metadata: dict[str, Any]) -> None:
        register_coco(name, files.annotations, files.images, metadata)

    def follow(self, cfg: DictConfig, metadata: Mapping[str, Any]) -> None:
        """Give the config's detector, in place, the number of classes that a checkpoint names."""
        if classes := metadata.get("thing_classes"):
            set_num_classes(cfg, len(classes), *_PLACES)


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
