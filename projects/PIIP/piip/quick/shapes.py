"""A generated data set of shapes at very different scales: instances in COCO's format, and label maps.

With it, training, evaluation and prediction can be tried and tested without a download. It is about scale:
objects range from 8 pixels to most of the image, in loose scenes, in scenes that one object fills, and in
crowds of small ones, with occlusion. Classes differ by outline and by hue: 8 pixels show little outline.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from ..detection.data import register_coco
from ..engine.command_line import dataset_root
from ..images import Image, write_image
from ..segmentation.data import register_folders
from .drawing import CLASSES, Mask, background, coverage_of, finished, generator_of, texture

_COLOURS = (
    (230, 60, 60),
    (60, 180, 75),
    (60, 100, 230),
    (245, 200, 40),
    (200, 60, 220),
    (50, 200, 220),
)  # RGB, to draw

SEMANTIC_CLASSES: tuple[str, ...] = ("background", *CLASSES)
"""Classes of the label maps."""
_BACKGROUND_COLOUR = (128, 128, 128)

MIN_EXTENT = 8  # larger side of the smallest object, in pixels
_MIN_VISIBLE = 0.7  # share of an object's pixels that always stays visible


def _plan(rng: np.random.Generator, size: int) -> list[tuple[int, float, tuple[float, float]]]:
    """(class, extent, box center) of the objects of one scene, in the order of drawing: the largest first."""

    def log_uniform(low: float, high: float) -> float:
        return float(np.exp(rng.uniform(np.log(low), np.log(high))))

    def random_center(extent: float) -> tuple[float, float]:
        margin = 0.45 * extent  # objects may leave the image by a little
        return float(rng.uniform(margin, size - margin)), float(rng.uniform(margin, size - margin))

    objects = []
    kind = rng.choice(["loose", "filled", "crowd"], p=[0.5, 0.35, 0.15])
    if kind == "filled":
        extent = rng.uniform(0.7, 1.1) * size
        objects.append((int(rng.integers(len(CLASSES))), extent, random_center(extent)))
    if kind == "crowd":
        label = int(rng.integers(len(CLASSES)))
        middle, spread = rng.uniform(0.3, 0.7, 2) * size, rng.uniform(0.15, 0.3) * size
        for _ in range(int(rng.integers(8, 15))):
            x, y = np.clip(rng.normal(middle, spread), MIN_EXTENT, size - MIN_EXTENT).tolist()
            objects.append((label, log_uniform(MIN_EXTENT, 0.3 * size), (x, y)))
    for _ in range(int(rng.integers(2, 7))):
        extent = log_uniform(max(MIN_EXTENT, 0.08 * size), 0.6 * size if kind == "loose" else 0.3 * size)
        objects.append((int(rng.integers(len(CLASSES))), extent, random_center(extent)))
    return sorted(objects, key=lambda planned: -planned[1])


def draw_scene(rng: np.random.Generator, size: int) -> tuple[Image, list[Mask], list[int]]:
    """One image and its objects.

    Args:
        rng: the only source of randomness.
        size: height and width of the image in pixels, at least 32.

    Returns:
        The image (size, size, 3) in BGR, the mask (size, size) of the visible pixels of each object, and the
        objects' indices into `CLASSES`.

    Raises:
        ValueError: the image is too small for the range of sizes.
    """
    if size < 4 * MIN_EXTENT:
        raise ValueError(f"image size {size} is too small for shapes: use at least {4 * MIN_EXTENT} pixels")
    image = background(rng, size)
    masks: list[Mask] = []
    labels: list[int] = []
    full_areas: list[int] = []
    for label, extent, center in _plan(rng, size):
        cover = coverage_of(label, extent, center, rng.uniform(-0.35, 0.35), size)
        mask = cover >= 0.5
        covered = [visible & ~mask for visible in masks]
        if not mask.any() or any(
            visible.sum() < _MIN_VISIBLE * area for visible, area in zip(covered, full_areas, strict=True)
        ):
            continue
        image += cover[..., None] * (texture(rng, label, image[mask].mean(axis=0), size) - image)
        masks = [*covered, mask]
        labels.append(label)
        full_areas.append(int(mask.sum()))
    return finished(rng, image, 4), masks, labels


def _annotation(mask: Mask, label: int) -> dict[str, Any]:
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {
        "category_id": label + 1,
        "bbox": coco_mask.toBbox(rle).tolist(),
        "area": int(mask.sum()),
        "iscrowd": 0,
        "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")},
    }


def write_split(root: Path, split: str, num_images: int, image_size: int, seed: int) -> Path:
    """Write images, instances and label maps. The same arguments give the same bytes.

    They are `root/split/*.png`, `root/instances_split.json` and `root/labels_split/*.png`.

    Args:
        root: folder of the dataset, made if missing.
        split: name of the split, such as "train".
        num_images: number of images.
        image_size: their height and width in pixels.
        seed: image number i depends on (seed, split, i) only.

    Returns:
        The path of the annotation file.
    """
    for folder in (root / split, root / f"labels_{split}"):
        folder.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(num_images):
        image, masks, labels = draw_scene(generator_of(seed, split, index), image_size)
        name = f"{index:06d}.png"
        semantic = np.zeros(image.shape[:2], np.uint8)
        for mask, label in zip(masks, labels, strict=True):
            semantic[mask] = label + 1  # visible pixels: masks do not overlap
        write_image(root / split / name, image)
        write_image(root / f"labels_{split}" / name, semantic)
        images.append({"id": index + 1, "file_name": name, "height": image_size, "width": image_size})
        for mask, label in zip(masks, labels, strict=True):
            identity = {"id": len(annotations) + 1, "image_id": index + 1}
            annotations.append({**identity, **_annotation(mask, label)})
    categories = [{"id": i + 1, "name": name, "supercategory": "shape"} for i, name in enumerate(CLASSES)]
    path = root / f"instances_{split}.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def register() -> None:
    """Register the data set in `dataset_root()/shapes`.

    Instances are "shapes_train" and "shapes_val", label maps "shapes_sem_seg_train" and
    "shapes_sem_seg_val".
    """
    metadata = {
        "thing_classes": list(CLASSES),
        "thing_colors": list(_COLOURS),
        "thing_dataset_id_to_contiguous_id": {i + 1: i for i in range(len(CLASSES))},
    }
    root = dataset_root() / "shapes"
    for split in ("train", "val"):
        register_coco(f"shapes_{split}", root / f"instances_{split}.json", root / split, metadata)
        register_folders(
            f"shapes_sem_seg_{split}",
            root / split,
            root / f"labels_{split}",
            SEMANTIC_CLASSES,
            stuff_colors=[_BACKGROUND_COLOUR, *_COLOURS],
        )
