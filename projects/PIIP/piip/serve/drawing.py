"""Chosen detections and classes drawn on an image."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.data import Metadata
from detectron2.structures import Instances
from detectron2.utils.colormap import colormap
from detectron2.utils.visualizer import ColorMode, Visualizer

from ..images import Image

__all__ = ["LAYERS", "chosen", "draw_classes", "draw_instances", "fit"]

LAYERS = ("boxes", "masks", "names")
"""What can be drawn."""

_OPACITY = 0.5


def fit(image: Image, *, least: int, most: int) -> Image:
    """The image at a size for the screen.

    Args:
        image: ``(H, W, 3)``.
        least: pixels of its longer side, to which a smaller image is enlarged, by a whole factor.
        most: pixels in all, to which a larger one is made smaller.
    """
    height, width = image.shape[:2]
    factor = -(-least // max(height, width))
    if factor > 1:
        enlarged = cv2.resize(image, (width * factor, height * factor), interpolation=cv2.INTER_CUBIC)
        return np.asarray(enlarged, dtype=np.uint8)
    scale = (most / (height * width)) ** 0.5
    if scale >= 1:
        return image
    size = max(int(width * scale), 1), max(int(height * scale), 1)
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def chosen(instances: Instances, threshold: float, classes: Collection[int]) -> Instances:
    """Detections of some classes (none: of all) that score at least the threshold, best first."""
    keep = instances.scores >= threshold
    if classes:
        keep &= torch.isin(instances.pred_classes, torch.tensor(sorted(classes)))
    kept: Instances = instances[keep]
    return kept[kept.scores.argsort(descending=True, stable=True)]


def _colours(metadata: Metadata, key: str) -> Any:
    """One colour per class, ``(N, 3)`` in [0, 1], RGB."""
    own = metadata.get(key)
    return np.asarray(own if own is not None else colormap(rgb=True), dtype=float) / 255


def draw_instances(
    image: Image, instances: Instances, metadata: Metadata, layers: Collection[str] = LAYERS
) -> Image:
    """Detections on an image of the size that they are for, both RGB.

    Args:
        image: ``(H, W, 3)``, RGB.
        instances: the detections to draw.
        metadata: names and colours of the classes.
        layers: which of :data:`LAYERS` to draw; masks are left out where there are none.
    """
    names, colours = metadata.thing_classes, _colours(metadata, "thing_colors")
    found = list(zip(instances.pred_classes.tolist(), instances.scores.tolist(), strict=True))
    has_masks = "masks" in layers and instances.has("pred_masks")
    if not found or not ("boxes" in layers or has_masks):
        return image
    canvas = Visualizer(image, metadata, instance_mode=ColorMode.IMAGE)
    drawn = canvas.overlay_instances(
        boxes=instances.pred_boxes if "boxes" in layers else None,
        masks=instances.pred_masks.numpy() if has_masks else None,
        labels=[f"{names[label]} {100 * score:.0f}%" for label, score in found]
        if "names" in layers
        else None,
        assigned_colors=[colours[label % len(colours)] for label, _ in found],
        alpha=_OPACITY,
    )
    return np.ascontiguousarray(drawn.get_image())


def draw_classes(
    image: Image,
    labels: Image,
    metadata: Metadata,
    classes: Collection[int] = (),
    layers: Collection[str] = LAYERS,
) -> Image:
    """The classes of pixels on an image of the same size.

    Args:
        image: ``(H, W, 3)``, RGB.
        labels: ``(H, W)``.
        metadata: names and colours of the classes.
        classes: those to draw; none for all.
        layers: "masks" colours areas, "names" writes on them.
    """
    colours = _colours(metadata, "stuff_colors")
    canvas = Visualizer(image, metadata, instance_mode=ColorMode.SEGMENTATION)
    present, areas = np.unique(labels, return_counts=True)
    for label in present[np.argsort(-areas)].tolist():
        if (classes and label not in classes) or "masks" not in layers:
            continue
        canvas.draw_binary_mask(
            (labels == label).astype(np.uint8),
            color=colours[label % len(colours)],
            edge_color=(1.0, 1.0, 240 / 255),
            text=metadata.stuff_classes[label] if "names" in layers else None,
            alpha=_OPACITY,
            area_threshold=10,
        )
    return np.ascontiguousarray(canvas.output.get_image())
