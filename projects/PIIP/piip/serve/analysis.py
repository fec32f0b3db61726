"""An image analysed: detections, time and cost by component, responses of the branches."""

from __future__ import annotations

import mmap
import time
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pycocotools.mask as coco_mask
import torch
import torch.nn.functional as F
from detectron2.config import instantiate
from detectron2.structures import Instances
from omegaconf import DictConfig
from torch import nn

from ..detection.predict import skip_below
from ..engine.config import load_config
from ..engine.data.custom_data import follow_weights
from ..engine.prediction.predict import Predictor
from ..flops import Report, build_on_meta
from ..images import Image
from ..measure.cost import detector_cost
from ..segmentation.segmentor import Segmentor
from .drawing import LAYERS, chosen, draw_classes, draw_instances, fit
from .responses import Observation, Response, find_piip, observed, responses
from .timing import timed

__all__ = ["LOWEST_SCORE", "Analysis", "CostRow", "Model"]

LOWEST_SCORE = 0.05
"""Detections that score less are never shown, and no masks are made of them."""

_SMALLEST_SIDE = 480  # of what is shown, in pixels: names are to be read
_LARGEST_PICTURE = 2_000_000  # pixels


@dataclass(frozen=True)
class CostRow:
    """Time and cost of one component of a model for an image.

    Attributes:
        component: its name.
        input_size: of the image that a branch gets, in pixels, padding included; "" for other components.
        milliseconds: measured once, for this image.
        gflops: multiply-adds in 1e9, None for what is not counted.
        params_m: parameters in millions.
    """

    component: str
    input_size: str
    milliseconds: float
    gflops: float | None
    params_m: float | None


@dataclass(frozen=True)
class Analysis:
    """What is known of one image. Drawing it with other choices needs no model.

    Attributes:
        model: what analysed it.
        picture: the image at the size in which it is shown, RGB.
        found: detections, whose `pred_masks` are run lengths of COCO; of a segmentor the class of each
            pixel, ``(H, W)``.
        rows: time and cost by component.
        responses: what the branches and the merged map respond to.
    """

    model: Model
    picture: Image
    found: Instances | npt.NDArray[np.unsignedinteger[Any]]
    rows: list[CostRow]
    responses: list[Response]

    @property
    def nbytes(self) -> int:
        """Memory that it takes, in bytes, small things left out."""
        pictures = [self.picture, *(response.picture for response in self.responses)]
        held = sum(picture.nbytes for picture in pictures)
        if not isinstance(self.found, Instances):
            return held + self.found.nbytes
        masks = self.found.pred_masks if self.found.has("pred_masks") else ()
        return held + sum(len(mask["counts"]) for mask in masks)

    def draw(
        self, threshold: float, classes: Collection[str] = (), layers: Collection[str] = LAYERS
    ) -> tuple[Image, list[list[Any]]]:
        """The picture with detections drawn on it, and a list of them.

        Args:
            threshold: lowest score of detections that are shown; pixels' classes have none.
            classes: names of the classes to show; none for all.
            layers: which of `piip.serve.drawing.LAYERS` to draw.

        Returns:
            The picture, RGB, and rows: class, score, box (left, top, right, bottom in pixels of the picture);
            of a segmentor class and share of the picture in percent.
        """
        numbers = [self.model.classes.index(name) for name in classes]
        metadata = self.model.predictor.metadata
        if not isinstance(self.found, Instances):
            labels = self.found
            drawn = draw_classes(self.picture, labels, metadata, numbers, layers)
            present, counts = np.unique(labels, return_counts=True)
            rows: list[list[Any]] = [
                [self.model.classes[label], f"{100 * count / labels.size:.1f}"]
                for label, count in sorted(zip(present, counts, strict=True), key=lambda pair: -pair[1])
                if not numbers or label in numbers
            ]
            return drawn, rows
        kept = chosen(self.found, threshold, numbers)
        rows = [
            [self.model.classes[label], f"{score:.2f}", ", ".join(f"{edge:.0f}" for edge in box)]
            for label, score, box in zip(
                kept.pred_classes.tolist(),
                kept.scores.tolist(),
                kept.pred_boxes.tensor.tolist(),
                strict=True,
            )
        ]
        if kept.has("pred_masks"):
            decoded = [torch.from_numpy(coco_mask.decode(mask)) for mask in kept.pred_masks]
            kept.pred_masks = torch.stack(decoded).bool() if decoded else torch.zeros(0, *kept.image_size)
        return draw_instances(self.picture, kept, metadata, layers), rows


def _apart(picture: Image) -> Image:
    """A copy in pages of its own: kept in the heap, it would keep apart what models free there."""
    copy: Image = np.frombuffer(mmap.mmap(-1, picture.nbytes), np.uint8).reshape(picture.shape)
    copy[:] = picture
    return copy


def _packed(output: dict[str, Any], classes: int) -> Instances | npt.NDArray[np.unsignedinteger[Any]]:
    """A model's output as an :class:`Analysis` keeps it: masks of all detections would take 200 MB."""
    if "instances" not in output:
        labels = output["sem_seg"].argmax(dim=0).to("cpu").numpy()
        return np.asarray(labels.astype(np.min_scalar_type(classes - 1)))
    instances: Instances = output["instances"].to("cpu")
    if instances.has("pred_masks"):
        masks = [coco_mask.encode(np.asfortranarray(mask.byte().numpy())) for mask in instances.pred_masks]
        instances.remove("pred_masks")
        instances.pred_masks = np.array(masks, dtype=object)  # which is indexed as tensors are
    return instances


class Model:
    """A trained model with its name, its task and its classes.

    Args:
        config_file: its LazyConfig.
        weights: a checkpoint; None for the config's `train.init_checkpoint`. Its folder and file name the
            model.
        overrides: "key=value" as on Detectron2's command lines.

    Raises:
        ValueError: there are no weights, or the model has no PIIP.
    """

    def __init__(self, config_file: str, weights: str | None = None, overrides: Collection[str] = ()) -> None:
        self.cfg: DictConfig = load_config(config_file, list(overrides), weights=weights or "")
        weights = weights or self.cfg.train.init_checkpoint
        if not weights:
            raise ValueError(f"no weights for {config_file}: give them, or set train.init_checkpoint")
        follow_weights(self.cfg, weights)
        self.predictor = Predictor(self.cfg, weights)
        self.detector: nn.Module = self.predictor.model
        self.piip = find_piip(self.detector)
        skip_below(self.detector, LOWEST_SCORE)
        self.finds_instances = not isinstance(self.detector, Segmentor)
        heads = getattr(self.detector, "roi_heads", None)
        masks = heads is not None and getattr(heads, "mask_on", False)
        self.task = (
            "semantic segmentation"
            if not self.finds_instances
            else ("instance segmentation" if masks else "detection")
        )
        self.name = f"{Path(weights).parent.name}/{Path(weights).stem}".lstrip("/")
        key = "thing_classes" if self.finds_instances else "stuff_classes"
        self.classes: list[str] = list(self.predictor.metadata.get(key))
        self.cost = lru_cache(maxsize=32)(self._cost)

    @torch.inference_mode()
    def analyse(self, image: Image) -> Analysis:
        """Run the model on an image and measure its components.

        Args:
            image: ``(H, W, 3)``, BGR, uint8.
        """
        picture = fit(image, least=_SMALLEST_SIDE, most=_LARGEST_PICTURE)
        size = picture.shape[0], picture.shape[1]
        start = time.perf_counter()
        prepared = self.predictor.prepare(image, size)
        preparing = time.perf_counter() - start
        with observed(self.piip) as seen, timed(self.detector, self.piip) as seconds, self.predictor.autocast:
            (output,) = self.detector([prepared])
        found = _packed(output, len(self.classes))
        rows = self._rows({"preparing": preparing, **seconds}, seen)
        if seen.images != 1:  # windows: the image as a whole shows more
            seen = self._observe_whole(prepared["image"])
        filled = prepared["image"].shape[1], prepared["image"].shape[2]
        shown = responses(self.piip, seen, filled)
        return Analysis(self, _apart(picture[:, :, ::-1]), found, rows, shown)

    def padded(self, image: torch.Tensor) -> torch.Tensor:
        """``(3, H, W)``, 0 to 255, normalised and padded as the backbone gets it: ``(1, 3, H', W')``."""
        detector: Any = self.detector
        normalised = (image.to(detector.device) - detector.pixel_mean) / detector.pixel_std
        multiple = getattr(detector, "size_divisibility", 0) or max(detector.backbone.size_divisibility, 1)
        return F.pad(normalised, (0, -image.shape[2] % multiple, 0, -image.shape[1] % multiple))[None]

    def _observe_whole(self, image: torch.Tensor) -> Observation:
        """What the PIIP makes of an image that the model cuts into windows, ``(3, H, W)``."""
        with observed(self.piip) as seen, self.predictor.autocast:
            self.piip(self.padded(image))
        return seen

    def _cost(self, size: tuple[int, int]) -> Report:
        """The model's cost for a padded image."""
        with build_on_meta():
            twin = instantiate(self.cfg.model)
        return detector_cost(twin, size)

    def _rows(self, seconds: dict[str, float], seen: Observation) -> list[CostRow]:
        """Time and cost of each component, and of all."""
        parts = self.cost(seen.size).total.parts
        counted = {name: (seen.images * part.gflops, part.params_m) for name, part in parts.items()}
        inside = {f"branch{number}" for number in range(1, len(self.piip.branches) + 1)}
        inside |= {"interactions", "merge", "resizing", "neck"}
        rest = [value for name, value in counted.items() if name not in inside]
        counted["heads"] = (sum(gflops for gflops, _ in rest), sum(params for _, params in rest))
        rows = []
        for name, spent in seconds.items():
            gflops, params = counted.get(name, (None, None))
            rows.append(CostRow(_title(name), self._input_size(name, seen), 1e3 * spent, gflops, params))
        total = CostRow(
            "all",
            self._input_size("all", seen),
            sum(row.milliseconds for row in rows),
            sum(row.gflops or 0.0 for row in rows),
            sum(row.params_m or 0.0 for row in rows),
        )
        return [*rows, total]

    def _input_size(self, component: str, seen: Observation) -> str:
        if not component.startswith(("branch", "all")):
            return ""
        branch = int(component.removeprefix("branch")) - 1 if component != "all" else None
        side = self.piip.input_size if branch is None else self.piip.image_sizes[branch]
        height, width = (int(edge * side / self.piip.input_size) for edge in seen.size)
        return f"{width}x{height}" if seen.images == 1 else f"{seen.images} times {width}x{height}"


def _title(component: str) -> str:
    return _TITLES.get(component) or component.replace("branch", "branch ")


_TITLES = {
    "preparing": "resizing the image",
    "resizing": "the image pyramid",
    "heads": "heads and post-processing",
}
