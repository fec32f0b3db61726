"""A generated data set of one patterned shape per image, in one folder per class.

A class is an outline. It is plain, striped or dotted, on blotches, and takes a third to most of the image.
Outlines have typical hues, which shortens training to minutes.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from ..images import Image, write_image
from .drawing import CLASSES, Pixels, background, coverage_of, finished, generator_of, hue_of, is_apart, waves

__all__ = ["FILLS", "draw", "write_split"]

FILLS = ("plain", "striped", "dotted")


def _colours(rng: np.random.Generator, label: int, behind: Pixels) -> tuple[Pixels, Pixels]:
    """(3,) a light and a dark colour of the class's hue in random order, the first apart from `behind`."""
    while True:
        hue = hue_of(rng, label)
        light, dark = rng.uniform(190, 255), rng.uniform(60, 110)
        hsv = np.array([[[hue, rng.uniform(150, 255), value]] for value in (light, dark)]).astype(np.uint8)
        first, second = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[:, 0].astype(np.float32)
        if rng.random() < 0.5:
            first, second = second, first
        if is_apart(first, behind):
            return first, second


def _pattern(rng: np.random.Generator, fill: str, size: int) -> Pixels:
    """(size, size, 1) share of the second of two colours, in [0, 1]."""
    along, across = waves(rng, size, 6, 10)
    if fill == "plain":
        share = np.zeros((size, size), np.float32)
    elif fill == "striped":
        share = np.clip(0.5 + 2 * np.sin(along), 0, 1)
    else:
        share = np.clip(2 * (np.sin(along) + np.sin(across)) - 1, 0, 1)
    return np.asarray(share[..., None], np.float32)


def draw(rng: np.random.Generator, label: int, size: int) -> Image:
    """An image of a class, ``(size, size, 3)`` BGR; `rng` is the only source of randomness."""
    fill = FILLS[int(rng.integers(len(FILLS)))]
    image = background(rng, size)
    extent = rng.uniform(0.35, 0.9) * size
    x, y = rng.uniform(extent / 2, size - extent / 2, 2).tolist()
    coverage = coverage_of(label, extent, (x, y), rng.uniform(-np.pi / 8, np.pi / 8), size)
    behind = image[coverage >= 0.5].mean(axis=0)
    first, second = _colours(rng, label, behind)
    image += coverage[..., None] * (first + _pattern(rng, fill, size) * (second - first) - image)
    return finished(rng, image, 6)


def write_split(root: Path, split: str, num_images: int, image_size: int, seed: int) -> Path:
    """Write ``root/split/CLASS/*.png``, classes in turn. The same arguments give the same bytes.

    Args:
        root: folder of the data set, made if missing.
        split: "train" or "val".
        num_images: number of images.
        image_size: their height and width in pixels.
        seed: image number i depends on (seed, split, i) only.

    Returns:
        The folder of the split.
    """
    folder = root / split
    for name in CLASSES:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for index in range(num_images):
        label = index % len(CLASSES)
        image = draw(generator_of(seed, split, index), label, image_size)
        write_image(folder / CLASSES[label] / f"{index:06d}.png", image)
    return folder
