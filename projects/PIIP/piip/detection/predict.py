"""Detections drawn on their images, and as entries of a COCO results file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import Metadata
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from detectron2.utils.visualizer import ColorMode, Visualizer

from ..engine.predict import Image

__all__ = ["InstanceRenderer", "draw", "visualizer"]


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
        """The image with its detections."""
        return draw(image, self._chosen(output), self.metadata)

    def save(self, output: dict[str, Any], picture: Path) -> None:
        """Detections have no file of their own: the records hold them."""
