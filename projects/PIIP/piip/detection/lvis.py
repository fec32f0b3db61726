"""LVIS: annotations in its format, classes weighted by how rare they are, and its metric.

An LVIS file is a COCO file in which every image says of which classes it was searched in vain
("neg_category_ids") and of which not all objects were annotated ("not_exhaustive_category_ids"). Evaluation
takes the package `lvis`, reading does not.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import LVISEvaluator as Detectron2Evaluator
from detectron2.structures import BoxMode
from omegaconf import DictConfig
from torch import Tensor

from ..engine.checkpoints.checkpoint import ClassShapes
from .annotations import sensible_annotations
from .own_data import CocoData, CocoFiles

__all__ = ["FederatedWeights", "LVISEvaluator", "LvisData", "read_lvis", "register_lvis"]

_COMMON, _FREQUENT = 11, 101  # images of a class from which it is no longer rare, and no longer common
_COLUMNS = {
    "AP": "AP",
    "AP50": "AP50",
    "AP75": "AP75",
    "APs": "small",
    "APm": "medium",
    "APl": "large",
    "APr": "rare",
    "APc": "common",
    "APf": "frequent",
}
_SEARCHED = ("neg_category_ids", "not_exhaustive_category_ids")
_MAX_SAMPLED = 50  # classes a batch that federated loss looks at


def read_lvis(json_file: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of an LVIS file, without the nonsense that :func:`sensible_annotations` leaves out.

    Where categories do not say in how many images they are, or how frequent that is, it is counted: "r" up
    to 10 images, "c" up to 100, "f".

    Raises:
        ValueError: it is not JSON, or no LVIS file.
    """
    path = Path(json_file)
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    try:
        for image in content["images"]:
            if "file_name" not in image:  # LVIS v1 names folder and file in the address of the image
                image["file_name"] = "/".join(image["coco_url"].split("/")[-2:])
            if missing := [key for key in _SEARCHED if key not in image]:
                raise KeyError(missing[0])
        for annotation in content["annotations"]:
            annotation.setdefault("iscrowd", 0)  # LVIS has no crowds
        content = sensible_annotations(content).content
        images = defaultdict(set)
        for annotation in content["annotations"]:
            images[annotation["category_id"]].add(annotation["image_id"])
        for category in content["categories"]:
            count = category.setdefault("image_count", len(images[category["id"]]))
            category.setdefault("frequency", "r" if count < _COMMON else "c" if count < _FREQUENT else "f")
    except (KeyError, TypeError, AttributeError) as error:
        lacking = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"{path} is not an LVIS annotation file ({lacking}): a COCO file needs neg_category_ids and "
            "not_exhaustive_category_ids of every image to become one"
        ) from error
    return dict(content)


def register_lvis(
    name: str,
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Register an LVIS-format dataset under `name`; a second call with the same name replaces the first.

    Args:
        name: what configs call the dataset.
        json_file: its annotations.
        image_root: the folder that its file names are relative to: those in "file_name", or the last two
            parts of "coco_url", as LVIS v1 has it.
        metadata: "thing_classes", "thing_dataset_id_to_contiguous_id" and "class_image_count"; without
            it, or without the latter, the annotations are read for it when it is needed.
    """
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, lambda: _records(name, Path(json_file), Path(image_root)))
    MetadataCatalog.get(name).set(
        json_file=os.fspath(json_file),
        image_root=os.fspath(image_root),
        evaluator_type="lvis",
        **(metadata or {}),
    )


def _describe_classes(name: str, categories: Sequence[Mapping[str, Any]]) -> None:
    """Tell Detectron2's catalog of a dataset's classes what it does not know yet."""
    metadata = MetadataCatalog.get(name)
    ordered = sorted(categories, key=lambda category: category["id"])
    known = {
        "thing_classes": [category["name"] for category in ordered],
        "thing_dataset_id_to_contiguous_id": {category["id"]: i for i, category in enumerate(ordered)},
        "class_image_count": [{key: c[key] for key in ("id", "image_count")} for c in ordered],
    }
    metadata.set(**{key: value for key, value in known.items() if metadata.get(key) is None})


def _records(name: str, json_file: Path, image_root: Path) -> list[dict[str, Any]]:
    """A dataset in Detectron2's standard format."""
    content = read_lvis(json_file)
    _describe_classes(name, content["categories"])
    classes = MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id
    annotations = defaultdict(list)
    for annotation in content["annotations"]:
        kept = {"bbox": annotation["bbox"], "bbox_mode": BoxMode.XYWH_ABS, "iscrowd": annotation["iscrowd"]}
        if "segmentation" in annotation:
            kept["segmentation"] = annotation["segmentation"]
        annotations[annotation["image_id"]].append(
            {**kept, "category_id": classes[annotation["category_id"]]}
        )
    return [
        {
            "file_name": str(image_root / image["file_name"]),
            "image_id": image["id"],
            "height": image["height"],
            "width": image["width"],
            "annotations": annotations[image["id"]],
        }
        for image in sorted(content["images"], key=lambda image: image["id"])
    ]


@dataclass(frozen=True)
class FederatedWeights:
    """How often federated loss draws each class as a negative: its number of images to a power.

    The weights are part of a model's checkpoints. Where no values are wanted, on the meta device, or none are
    known, without a dataset, they are ones.

    Args:
        dataset: registered name of the training set; None in evaluation and prediction.
        num_classes: of the model.
        power: 0 draws all classes alike, 1 as often as they are seen.
    """

    dataset: str | None
    num_classes: int
    power: float = 0.5

    def __call__(self) -> Tensor:
        """``(num_classes,)``.

        Raises:
            ValueError: the dataset has another number of classes.
        """
        if self.dataset is None or torch.get_default_device().type == "meta":
            return torch.ones(self.num_classes)
        metadata = MetadataCatalog.get(self.dataset)
        if metadata.get("class_image_count") is None:
            _describe_classes(self.dataset, read_lvis(metadata.json_file)["categories"])
        counts = sorted(metadata.class_image_count, key=lambda entry: entry["id"])
        if len(counts) != self.num_classes:
            raise ValueError(
                f"dataset '{self.dataset}' has {len(counts)} classes, the model {self.num_classes}: give "
                "model.roi_heads.num_classes"
            )
        # a class that is in no image can be drawn, too: of few classes all may be asked for
        images = torch.tensor([entry["image_count"] for entry in counts]).clamp(min=1)
        return images.float() ** self.power


@contextmanager
def _former_names_of_numpy() -> Iterator[None]:
    """Let NumPy have the name `float`, which it dropped in 1.24 and lvis 0.5.3 still asks it for."""
    missing = not hasattr(np, "float")
    if missing:
        np.float = float  # type: ignore[attr-defined]
    try:
        yield
    finally:
        if missing:
            del np.float  # type: ignore[attr-defined]


class LVISEvaluator(Detectron2Evaluator):
    """Detectron2's LVIS evaluator on what :func:`read_lvis` reads, which says in the end what it found."""

    def __init__(self, dataset_name: str, *args: Any, **kwargs: Any) -> None:
        """Arguments are Detectron2's.

        Raises:
            ModuleNotFoundError: `lvis` is not installed.
        """
        try:
            super().__init__(dataset_name, *args, **kwargs)
        except ModuleNotFoundError as error:
            if error.name != "lvis":
                raise
            raise ModuleNotFoundError(
                "evaluation on LVIS needs its package: pip install --no-deps lvis==0.5.3 (what it depends on "
                "is here already, and a second OpenCV would not be welcome)"
            ) from error
        content = read_lvis(self._metadata.json_file)
        _describe_classes(dataset_name, content["categories"])
        self._lvis_api.dataset = content
        self._lvis_api._create_index()

    def evaluate(self) -> Any:
        """As Detectron2's."""
        with _former_names_of_numpy():
            return super().evaluate()

    def summary(self, results: Mapping[str, Mapping[str, float]]) -> str:
        """The lines to log after an evaluation: AP in percent, of rare, common and frequent classes, too."""
        lines = ["LVIS average precision in percent:", " " * 6]
        lines[1] += "".join(f"{title:>9}" for title in _COLUMNS.values())
        for task, name in (("bbox", "box"), ("segm", "mask")):
            if task in results:
                values = (results[task].get(key, -1.0) for key in _COLUMNS)
                # LVIS says -1 (here percent) of what there is none of
                lines.append(
                    f"{name:6}" + "".join("      n/a" if not v >= 0 else f"{v:9.1f}" for v in values)
                )
        return "\n".join(lines)


class LvisFiles(CocoFiles):
    """Annotations in LVIS's format, and the folder that their file names are relative to."""

    @cached_property
    def content(self) -> dict[str, Any]:
        """What :func:`read_lvis` reads."""
        return read_lvis(self.annotations)


class LvisData(CocoData):
    """What `--data` means for detectors that are trained as on LVIS: annotations in its format."""

    _files = LvisFiles

    def use(self, cfg: DictConfig, data: Sequence[str], *, train: bool = True) -> ClassShapes:
        """As `CocoData`; federated loss takes its weights from the training set."""
        weighted = list(_federated(cfg))
        for predictor in weighted:
            predictor.get_fed_loss_cls_weights.dataset = "own_train" if train else None
        shapes = super().use(cfg, data, train=train)
        for predictor in weighted:
            predictor.fed_loss_num_classes = min(_MAX_SAMPLED, cfg.model.roi_heads.num_classes)
        return shapes

    def follow(self, cfg: DictConfig, metadata: Mapping[str, Any]) -> None:
        """As `CocoData`; the weights of federated loss are the checkpoint's."""
        for predictor in _federated(cfg):
            predictor.get_fed_loss_cls_weights.dataset = None
        super().follow(cfg, metadata)

    def _register(self, name: str, files: CocoFiles, metadata: dict[str, Any]) -> None:
        register_lvis(name, files.annotations, files.images, metadata)


def _federated(cfg: DictConfig) -> list[Any]:
    """The config's box predictors that have federated loss."""
    heads = cfg.model.roi_heads
    predictors = heads.box_predictors if "box_predictors" in heads else [heads.box_predictor]
    return [predictor for predictor in predictors if predictor.get("use_fed_loss", False)]
