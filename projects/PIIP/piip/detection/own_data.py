"""Custom datasets of detectors, in COCO's format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ..engine.data.custom_data import CustomDataset, pairs_of_paths
from .annotations import SanitizedAnnotations, has_masks, read_annotations
from .data import register_coco
from .mmdetection.rules import Rules, use_rules

__all__ = ["CocoData", "CocoFiles"]

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
        pairs = [*pairs_of_paths(text), (path := Path(text).expanduser(), path.parent)]
        candidates = [cls(*pair) for pair in pairs]
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
    def checked(self) -> SanitizedAnnotations:
        """The annotation file, see :func:`~piip.detection.annotations.read_annotations`.

        Raises:
            ValueError: it cannot be read.
        """
        return read_annotations(self.annotations)

    def __str__(self) -> str:
        return str(self.annotations)

    def classes(self) -> dict[int, str]:
        """Names by ids, in the order of the ids."""
        categories = self.checked.content["categories"]
        return dict(sorted((category["id"], category["name"]) for category in categories))

    def metadata(self) -> dict[str, Any]:
        """The classes as Detectron2's catalog knows them."""
        classes = self.classes()
        return {
            "thing_classes": list(classes.values()),
            "thing_dataset_id_to_contiguous_id": {id_: i for i, id_ in enumerate(classes)},
        }

    def check_images(self) -> None:
        """Look for some of the images.

        Raises:
            FileNotFoundError: none of them is there.
            ValueError: there is none that can be used.
        """
        names = [image["file_name"] for image in self.checked.content["images"][:_LOOKED_AT]]
        if not names:
            raise ValueError(f"{self.annotations} has no image that can be used; {self.checked}".rstrip("; "))
        if not any((self.images / name).is_file() for name in names):
            raise FileNotFoundError(
                f"images of {self.annotations} are not where they should be, such as "
                f"{self.images / names[0]}: --data expects {_FORM}"
            )


@dataclass
class CocoData(CustomDataset):
    """What `--data` means for detectors: COCO-format annotations and images, for training and validation.

    Attributes:
        rules: what a Mask R-CNN is trained by, see `piip.detection.mmdetection.rules.use_rules`.
    """

    rules: Rules = "detectron2"
    split = CocoFiles
    form = "ANNOTATIONS.json:IMAGES"
    places = ("", "roi_heads", "head")
    names = "thing_classes"

    def register(self, name: str, files: CocoFiles) -> None:
        """As a dataset in COCO's format."""
        files.check_images()
        register_coco(name, files.annotations, files.images, files.metadata())

    def adapt(self, cfg: DictConfig, files: Mapping[str, CocoFiles]) -> None:
        """Have the model trained by :attr:`rules`, and the config take the training data's kind of masks.

        Raises:
            ValueError: the model learns masks, and there are none.
        """
        if "train" not in files:
            return
        use_rules(self.rules, cfg.model, cfg.dataloader)
        content = files["train"].checked.content
        if not content.get("annotations"):
            raise ValueError(
                f"{files['train']} has no object to learn; {files['train'].checked}".rstrip("; ")
            )
        if not has_masks(content) and OmegaConf.select(cfg, "model.roi_heads.mask_in_features") is not None:
            raise ValueError(
                f"{files['train']} has boxes only, the config's model learns masks, too: add "
                "model.roi_heads.mask_in_features=null to learn boxes only (from a checkpoint without mask "
                "head)"
            )
        run_lengths = any(
            isinstance(annotation.get("segmentation"), dict) and not annotation["iscrowd"]
            for annotation in content["annotations"]
        )
        if run_lengths and "mapper" in cfg.dataloader.train:  # polygons could not hold them
            cfg.dataloader.train.mapper.instance_mask_format = "bitmask"
