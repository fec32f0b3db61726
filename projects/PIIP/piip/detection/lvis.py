"""LVIS: annotations in its format, classes weighted by how rare they are, and its metric.

An LVIS file is a COCO file in which every image says of which classes it was searched in vain
("neg_category_ids") and of which not all objects were annotated ("not_exhaustive_category_ids"). Evaluation
takes the package `lvis`, reading does not.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import LVISEvaluator as Detectron2Evaluator
from omegaconf import DictConfig
from torch import Tensor

from ..engine.checkpoints.checkpoint import ClassShapes
from .annotations import SanitizedAnnotations, read_json, sanitize_annotations
from .data import describe_classes, register
from .evaluation import empty_dataset, measurable
from .numbers import whole_number
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


def read_lvis(json_file: str | os.PathLike[str]) -> SanitizedAnnotations:
    """Read and check an LVIS file as :func:`~piip.detection.annotations.read_annotations` does a COCO file.

    Where categories do not say in how many images they are, or how frequent that is, it is counted: "r" up
    to 10 images, "c" up to 100, "f".

    Raises:
        ValueError: it is not JSON, or no LVIS file.
    """
    content = read_json(json_file)
    try:
        checked = sanitize_annotations(_as_coco(content))
    except ValueError as error:
        raise ValueError(f"{os.fspath(json_file)} is not an LVIS annotation file: {error}") from error
    images = defaultdict(set)
    for annotation in checked.content["annotations"]:
        images[annotation["category_id"]].add(annotation["image_id"])
    for category in checked.content["categories"]:
        count = whole_number(category.get("image_count"))
        count = len(images[category["id"]]) if count is None or count < 0 else count
        category["image_count"] = count
        if category.get("frequency") not in ("r", "c", "f"):
            category["frequency"] = "r" if count < _COMMON else "c" if count < _FREQUENT else "f"
    return checked


def _as_coco(content: Any) -> Any:
    """An LVIS file, with what only COCO's have.

    Raises:
        ValueError: it lacks what only LVIS's have.
    """
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        return content  # the check says what is wrong
    for position, image in enumerate(content["images"]):
        for key in _SEARCHED:
            if not isinstance(image, dict) or not isinstance(image.get(key), list):
                raise ValueError(
                    f"images[{position}] lacks a list '{key}'; a COCO file needs neg_category_ids and "
                    "not_exhaustive_category_ids of every image to become one"
                )
            image[key] = [id_ for id_ in map(whole_number, image[key]) if id_ is not None]
        address = image.get("coco_url")
        if "file_name" not in image and isinstance(address, str):  # it ends with folder and file
            image["file_name"] = "/".join(address.split("/")[-2:])
    annotations = content.get("annotations", [])
    if isinstance(annotations, list):  # LVIS has no crowds
        annotations = [{"iscrowd": 0, **a} if isinstance(a, dict) else a for a in annotations]
    return {**content, "annotations": annotations}


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
    read = partial(_read_described, name)
    register(name, json_file, image_root, metadata, evaluator_type="lvis", read=read)


def _read_described(name: str, json_file: str) -> SanitizedAnnotations:
    """Read a file, and tell Detectron2's catalog of its classes."""
    checked = read_lvis(json_file)
    categories = checked.content["categories"]
    describe_classes(name, categories)
    if MetadataCatalog.get(name).get("class_image_count") is None:
        counts = sorted(
            ({key: c[key] for key in ("id", "image_count")} for c in categories), key=itemgetter("id")
        )
        MetadataCatalog.get(name).class_image_count = counts
    return checked


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
            _read_described(self.dataset, metadata.json_file)
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

    _tasks: Any

    def __init__(self, dataset_name: str, *args: Any, **kwargs: Any) -> None:
        """Arguments are Detectron2's.

        Raises:
            ModuleNotFoundError: `lvis` is not installed.
            ValueError: the annotation file cannot be read, see :func:`read_lvis`.
        """
        try:
            with empty_dataset() as empty:
                super().__init__(empty, *args, **kwargs)
        except ModuleNotFoundError as error:
            if error.name != "lvis":
                raise
            raise ModuleNotFoundError(
                "evaluation on LVIS needs its package: pip install --no-deps lvis==0.5.3 (what it depends on "
                "is here already, and a second OpenCV would not be welcome)"
            ) from error
        self._metadata = MetadataCatalog.get(dataset_name)
        content = _read_described(dataset_name, self._metadata.json_file).content
        self._do_evaluation = bool(content["annotations"])
        self._lvis_api.dataset = content
        self._lvis_api._create_index()
        self._tasks = self._tasks and measurable(self._tasks, content)

    def _tasks_from_predictions(self, predictions: Any) -> list[str]:
        return measurable(super()._tasks_from_predictions(predictions), self._lvis_api.dataset)

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
    def checked(self) -> SanitizedAnnotations:
        """The annotation file, see :func:`read_lvis`."""
        return read_lvis(self.annotations)


class LvisData(CocoData):
    """What `--data` means for detectors that are trained as on LVIS: annotations in its format."""

    split = LvisFiles

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

    def register(self, name: str, files: CocoFiles) -> None:
        """As a dataset in LVIS's format."""
        files.check_images()
        register_lvis(name, files.annotations, files.images, files.metadata())


def _federated(cfg: DictConfig) -> list[Any]:
    """The config's box predictors that have federated loss."""
    heads = cfg.model.roi_heads
    predictors = heads.box_predictors if "box_predictors" in heads else [heads.box_predictor]
    return [predictor for predictor in predictors if predictor.get("use_fed_loss", False)]
