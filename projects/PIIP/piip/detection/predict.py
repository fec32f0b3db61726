"""Detections drawn on their images, and as entries of a COCO results file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.data import Metadata
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
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


def skip_below(model: nn.Module, score_threshold: float) -> None:
    """Let a detector leave out what scores less before it makes masks of it, not after.

    The same detections remain, but a mask takes as many bytes as the image has pixels: a hundred faint ones
    on a photograph of 54 megapixels are 5 GB.
    """
    for module in model.modules():
        if isinstance(module, FastRCNNOutputLayers):
            module.test_score_thresh = max(module.test_score_thresh, score_threshold)


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
    """

    def __init__(self, metadata: Metadata, score_threshold: float = 0.5) -> None:
        self.metadata, self.score_threshold = metadata, score_threshold

    def _chosen(self, output: dict[str, Any]) -> Instances:
        instances: Instances = output["instances"]
        return instances[instances.scores >= self.score_threshold]

    def records(self, output: dict[str, Any], image_id: int) -> list[dict[str, Any]]:
        """Detections as entries of a COCO results file, with the dataset's own category ids."""
        categories = {i: c for c, i in self.metadata.thing_dataset_id_to_contiguous_id.items()}
        records: list[dict[str, Any]] = instances_to_coco_json(self._chosen(output), image_id)
        return [{**record, "category_id": categories[record["category_id"]]} for record in records]

    def draw(self, image: Image, output: dict[str, Any]) -> Image:
        """The image with its detections, made smaller beyond `LARGEST_PICTURE`."""
        return draw(*shrink(image, self._chosen(output)), self.metadata)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """The image's own."""
        return height, width

    def save(self, output: dict[str, Any], picture: Path, size: tuple[int, int]) -> None:
        """Detections have no file of their own: the records hold them."""
