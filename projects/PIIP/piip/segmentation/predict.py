"""Results of segmentation: drawings, label maps and the share of each class."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.data import Metadata
from detectron2.utils.visualizer import ColorMode, Visualizer

from ..engine.prediction.predict import LARGEST_PICTURE
from ..images import Image, write_image

__all__ = ["SemanticRenderer"]

_LARGEST_OUTPUT = 400_000_000  # logits of one image: 1.6 GB of float32
_OPACITY = 0.55


class SemanticRenderer:
    """A segmentor's output: an overlay with the names of the classes, and a label map.

    Args:
        metadata: names of the classes.
    """

    def __init__(self, metadata: Metadata) -> None:
        self.metadata = metadata
        self.names: list[str] = list(metadata.stuff_classes)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """The image's own, or a smaller one where that many logits would not fit into memory."""
        scale = min(1.0, math.sqrt(_LARGEST_OUTPUT / (len(self.names) * height * width)))
        return max(int(height * scale), 1), max(int(width * scale), 1)

    @staticmethod
    def _labels(output: dict[str, Any], size: tuple[int, int]) -> Image:
        """Classes at a size ``(height, width)``."""
        labels = output["sem_seg"].argmax(dim=0).to("cpu").numpy().astype(np.uint8)
        return np.asarray(cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST), dtype=np.uint8)

    def records(self, output: dict[str, Any], image_id: int) -> list[dict[str, Any]]:
        """The classes in the image, each with its share of the pixels."""
        labels, counts = output["sem_seg"].argmax(dim=0).unique(return_counts=True)
        shares = (counts.double() / counts.sum()).tolist()
        return [
            {"image_id": image_id, "class": self.names[label], "label": label, "share": share}
            for label, share in zip(labels.tolist(), shares, strict=True)
        ]

    def draw(self, image: Image, output: dict[str, Any]) -> Image:
        """The image with its classes drawn on it, made smaller beyond `LARGEST_PICTURE`."""
        height, width = image.shape[:2]
        scale = min(1.0, math.sqrt(LARGEST_PICTURE / (height * width)))
        size = max(round(height * scale), 1), max(round(width * scale), 1)
        picture = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
        canvas = Visualizer(picture[:, :, ::-1], self.metadata, instance_mode=ColorMode.SEGMENTATION)
        drawn = canvas.draw_sem_seg(self._labels(output, size), alpha=_OPACITY).get_image()
        return np.ascontiguousarray(drawn[:, :, ::-1])

    def save(self, output: dict[str, Any], picture: Path, size: tuple[int, int]) -> None:
        """Write the label map beside the picture, ``NAME.labels.png``, of the image's size."""
        write_image(picture.with_suffix(".labels.png"), self._labels(output, size))
