"""Detections: drawn on their images, and as entries of a COCO results file."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.data import Metadata
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.structures import Instances
from detectron2.utils.visualizer import ColorMode, Visualizer
from torch import nn

from ..engine.prediction.predict import LARGEST_PICTURE
from ..images import Image

__all__ = ["InstanceRenderer", "draw", "skip_below", "visualizer"]


def visualizer(image: Image, metadata: Metadata, scale: float = 1.0) -> Visualizer:
    """Detectron2's visualizer for a BGR image, with a colour a class where the dataset has them."""
    mode = ColorMode.IMAGE if metadata.get("thing_colors") is None else ColorMode.SEGMENTATION
    return Visualizer(image[:, :, ::-1], metadata, scale=scale, instance_mode=mode)


def draw(image: Image, instances: Instances, metadata: Metadata, scale: float = 1.0) -> Image:
    """The image with boxes, masks, class names and scores drawn on it, `scale` times as large."""
    drawn: Image = (
        visualizer(image, metadata, scale).draw_instance_predictions(instances, jittering=False).get_image()
    )
    return np.ascontiguousarray(drawn[:, :, ::-1])


@dataclass
class Undrawn:
    """Counts of what a detector's output leaves out.

    Attributes:
        faint: number of boxes that score below the threshold.
        full: number of images with as many boxes as the detector reports at most; there may be more objects.
    """

    faint: int = 0
    full: int = 0


def skip_below(model: nn.Module, score_threshold: float) -> Undrawn:
    """Let a Mask R-CNN drop boxes that score below a threshold before it makes masks of them.

    The other detections stay as they are. A mask takes as many bytes as the image has pixels: for 100 faint
    boxes on a photograph of 54 megapixels, 5 GB.

    Returns:
        What is dropped from now on, counted.
    """
    undrawn = Undrawn()

    def wrapped(heads: StandardROIHeads) -> Callable[..., Any]:
        forward_box = heads._forward_box
        predictors = heads.box_predictor
        last = (
            predictors[-1] if isinstance(predictors, nn.ModuleList) else predictors
        )  # a cascade has several

        def without_faint(*args: Any) -> Any:
            found = forward_box(*args)
            if heads.training:
                return found
            kept = [instances[instances.scores >= score_threshold] for instances in found]
            undrawn.faint += sum(map(len, found)) - sum(map(len, kept))
            undrawn.full += sum(len(instances) == last.test_topk_per_image for instances in kept)
            return kept

        return without_faint

    for module in model.modules():
        if isinstance(module, StandardROIHeads):
            module._forward_box = wrapped(module)
    return undrawn


def shrink(image: Image, instances: Instances) -> tuple[Image, Instances]:
    """An image of at most `LARGEST_PICTURE` pixels, and its detections with it."""
    height, width = image.shape[:2]
    scale = math.sqrt(LARGEST_PICTURE / (height * width))
    if scale >= 1:
        return image, instances
    size = round(height * scale), round(width * scale)
    smaller = Instances(size, scores=instances.scores, pred_classes=instances.pred_classes)
    smaller.pred_boxes = instances.pred_boxes.clone()
    smaller.pred_boxes.scale(size[1] / width, size[0] / height)
    if instances.has("pred_masks"):
        rows = torch.arange(size[0]) * height // size[0]
        columns = torch.arange(size[1]) * width // size[1]
        smaller.pred_masks = instances.pred_masks[:, rows][:, :, columns]
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA), smaller


class InstanceRenderer:
    """A detector's output: drawn, and as COCO results.

    Args:
        metadata: names of the classes, and their ids in the dataset.
        score_threshold: leave out detections that score less.

    Attributes:
        faint: number of detections left out so far.
    """

    def __init__(self, metadata: Metadata, score_threshold: float = 0.5) -> None:
        self.metadata, self.score_threshold = metadata, score_threshold
        self.faint = 0

    def _chosen(self, output: dict[str, Any]) -> Instances:
        instances: Instances = output["instances"]
        return instances[instances.scores >= self.score_threshold]

    def records(self, output: dict[str, Any], image_id: int) -> list[dict[str, Any]]:
        """Detections as entries of a COCO results file, with ids and names of the dataset's categories."""
        ids = {i: c for c, i in self.metadata.thing_dataset_id_to_contiguous_id.items()}
        names, chosen = self.metadata.thing_classes, self._chosen(output)
        self.faint += len(output["instances"]) - len(chosen)
        return [
            {**record, "category_id": ids[record["category_id"]], "category": names[record["category_id"]]}
            for record in instances_to_coco_json(chosen, image_id)
        ]

    def draw(self, image: Image, output: dict[str, Any]) -> Image:
        """The image with its detections, made smaller beyond `LARGEST_PICTURE`."""
        return draw(*shrink(image, self._chosen(output)), self.metadata)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """The image's own."""
        return height, width

    def save(self, output: dict[str, Any], picture: Path, size: tuple[int, int]) -> None:
        """Detections have no file of their own: the records hold them."""
