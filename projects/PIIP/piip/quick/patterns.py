"""A data set that draws itself, one patterned shape an image, in a folder a class.

A class is an outline, at sizes from a third of the image to most of it, plain, striped or dotted, before
blotches. Outlines have typical hues, which shortens training to minutes.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from .drawing import CLASSES, Image, background, coverage_of

__all__ = ["FILLS", "draw", "write_split"]

FILLS = ("plain", "striped", "dotted")

_CONTRAST = 60  # grey levels between a shape and what is behind it


def _colours(
    rng: np.random.Generator, label: int, behind: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """(3,) a light and a dark colour of the class's hue, the first apart from what is behind."""
    while True:
        hue = (label + rng.normal(0, 0.15)) * 180 / len(CLASSES) % 180  # OpenCV's hues end at 180
        light, dark = rng.uniform(190, 255), rng.uniform(60, 110)
        hsv = np.array([[[hue, rng.uniform(150, 255), value]] for value in (light, dark)]).astype(np.uint8)
        first, second = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[:, 0].astype(np.float32)
        if rng.random() < 0.5:
            first, second = second, first
        if np.abs(first - behind).max() >= _CONTRAST:
            return first, second


def _pattern(rng: np.random.Generator, fill: str, size: int) -> npt.NDArray[np.float32]:
    """(size, size, 1) how much of the second of two colours is where, in [0, 1]."""
    angle, period = rng.uniform(0, np.pi), rng.uniform(6, 10)
    ys, xs = np.mgrid[:size, :size].astype(np.float32)
    along = (xs * np.cos(angle) + ys * np.sin(angle)) * (2 * np.pi / period)
    across = (ys * np.cos(angle) - xs * np.sin(angle)) * (2 * np.pi / period)
    if fill == "plain":
        share = np.zeros((size, size), np.float32)
    elif fill == "striped":
        share = np.clip(0.5 + 2 * np.sin(along), 0, 1)
    else:
        share = np.clip(2 * (np.sin(along) + np.sin(across)) - 1, 0, 1)
    return np.asarray(share[..., None], np.float32)


def draw(rng: np.random.Generator, label: int, size: int) -> Image:
    """An image of a class, ``(size, size, 3)`` BGR; the state of `rng` alone decides which."""
    fill = FILLS[int(rng.integers(len(FILLS)))]
    image = background(rng, size)
    extent = rng.uniform(0.35, 0.9) * size
    x, y = rng.uniform(extent / 2, size - extent / 2, 2).tolist()
    coverage = coverage_of(label, extent, (x, y), rng.uniform(-np.pi / 8, np.pi / 8), size)
    behind = image[coverage >= 0.5].mean(axis=0)
    first, second = _colours(rng, label, behind)
    texture = first + _pattern(rng, fill, size) * (second - first)
    image += coverage[..., None] * (texture - image)
    image += rng.normal(0, 6, image.shape).astype(np.float32)
    return np.clip(image, 0, 255).astype(np.uint8)


def write_split(root: Path, split: str, num_images: int, image_size: int, seed: int) -> Path:
    """Write ``root/split/CLASS/*.png``, the same bytes for the same arguments, classes in turn.

    Args:
        root: folder of the data set, made if missing.
        split: "train" or "val".
        num_images: how many images.
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
        image = draw(np.random.default_rng([seed, *split.encode(), index]), label, image_size)
        path = folder / CLASSES[label] / f"{index:06d}.png"
        if not cv2.imwrite(str(path), image):
            raise OSError(f"cannot write {path}: check that the folder is writable")
    return folder
