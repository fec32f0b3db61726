"""Random shapes on blurred blotches: the images of the generated data sets."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from ..images import Image

CLASSES: tuple[str, ...] = ("disc", "square", "triangle", "star", "ring", "cross")

_SUPERSAMPLING = 4

Mask = npt.NDArray[np.bool_]
Pixels = npt.NDArray[np.float32]


def generator_of(seed: int, split: str, index: int) -> np.random.Generator:
    """The random numbers of one image. They depend on seed, split and index only."""
    return np.random.default_rng([seed, *split.encode(), index])


def _polygon(radii: Sequence[float], phase: float = 0.0) -> npt.NDArray[np.float64]:
    """(N, 2) corners at equal angles and the given radii, the first at `phase` radians from the top."""
    angles = phase - np.pi / 2 + 2 * np.pi * np.arange(len(radii)) / len(radii)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.asarray(radii)[:, None]


_ARM = 0.32  # half the width of the cross's arms
_OUTLINES: dict[str, list[npt.NDArray[np.float64]]] = {
    "disc": [_polygon([1.0] * 48)],
    "square": [_polygon([1.0] * 4, np.pi / 4)],
    "triangle": [_polygon([1.0] * 3)],
    "star": [_polygon([1.0, 0.42] * 5)],
    "ring": [_polygon([1.0] * 48), _polygon([0.5] * 48)],  # the second outline is the hole
    "cross": [
        np.array(
            [
                (-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM),
                (_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM),
            ]
        )
    ],
}  # fmt: skip


def coverage_of(label: int, extent: float, center: tuple[float, float], angle: float, size: int) -> Pixels:
    """(size, size) share of each pixel that a shape covers, in [0, 1].

    `extent` is the larger side of its box and `center` the center (x, y) of the box, in pixels; `angle` is in
    radians.
    """
    cos, sin = np.cos(angle), np.sin(angle)
    outlines = [outline @ np.array([(cos, sin), (-sin, cos)]) for outline in _OUTLINES[CLASSES[label]]]
    low, high = outlines[0].min(axis=0), outlines[0].max(axis=0)
    scale = extent / (high - low).max()
    corners = [(outline - (low + high) / 2) * scale + np.asarray(center) for outline in outlines]
    x0, y0 = np.clip(np.floor(corners[0].min(axis=0)).astype(int), 0, size - 1)
    x1, y1 = np.clip(np.ceil(corners[0].max(axis=0)).astype(int) + 1, 1, size)
    fine = np.zeros(((y1 - y0) * _SUPERSAMPLING, (x1 - x0) * _SUPERSAMPLING), np.uint8)
    cv2.fillPoly(fine, [np.round((c - (x0, y0)) * _SUPERSAMPLING).astype(np.int32) for c in corners], 255)
    covered = np.zeros((size, size), np.float32)
    covered[y0:y1, x0:x1] = cv2.resize(fine, (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA)
    covered /= 255
    return covered


def background(rng: np.random.Generator, size: int) -> Pixels:
    """(size, size, 3) smooth blotches, nearly grey, because hue is what tells small objects apart."""
    cells = int(rng.integers(2, 6))
    blotches = rng.uniform(30, 225, (cells, cells, 1)) + rng.uniform(-20, 20, (cells, cells, 3))
    return np.asarray(cv2.resize(blotches.astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC))


def hue_of(rng: np.random.Generator, label: int) -> float:
    """A hue typical of a class, in OpenCV's range [0, 180)."""
    return float((label + rng.normal(0, 0.15)) * 180 / len(CLASSES) % 180)


def is_apart(colour: Pixels, behind: Pixels) -> bool:
    """Whether a colour (3,) differs from the background's by 60 grey levels in a channel."""
    return bool(np.abs(colour - behind).max() >= 60)


def waves(rng: np.random.Generator, size: int, shortest: float, longest: float) -> tuple[Pixels, Pixels]:
    """(size, size) phases in radians along a random direction and across it, of a random period in pixels."""
    angle, period = rng.uniform(0, np.pi), rng.uniform(shortest, longest)
    ys, xs = np.mgrid[:size, :size].astype(np.float32)
    along = (xs * np.cos(angle) + ys * np.sin(angle)) * (2 * np.pi / period)
    across = (ys * np.cos(angle) - xs * np.sin(angle)) * (2 * np.pi / period)
    return along, across


def texture(rng: np.random.Generator, label: int, behind: Pixels, size: int) -> Pixels:
    """(size, size, 3) stripes of a hue typical of the class, apart from the background `behind` (3,)."""
    while True:
        hsv = np.array([[[hue_of(rng, label), rng.uniform(120, 255), rng.uniform(100, 255)]]]).astype(
            np.uint8
        )
        colour = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0, 0].astype(np.float32)
        if is_apart(colour, behind):
            break
    wave = np.sin(waves(rng, size, 6, 24)[0])
    return colour + (rng.uniform(0, 25) * wave)[..., None].astype(np.float32)


def finished(rng: np.random.Generator, image: Pixels, noise: float) -> Image:
    """The image with Gaussian noise of a standard deviation in grey levels, as 8 bits."""
    image += rng.normal(0, noise, image.shape).astype(np.float32)
    return np.clip(image, 0, 255).astype(np.uint8)
