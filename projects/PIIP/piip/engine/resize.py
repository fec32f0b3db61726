"""The image resize of the released detectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from detectron2.data.transforms import Augmentation, AugmentationList
from fvcore.transforms.transform import Transform

__all__ = ["OneOf", "OpenCVResize", "RandomResizeToFit", "RandomScaleToFit", "ResizeToCover", "ResizeToFit"]

Array = npt.NDArray[Any]


class OpenCVResize(Transform):
    """Bilinear resize without antialiasing, in OpenCV's arithmetic: 8-bit images stay 8-bit.

    Detectron2's own resize goes through Pillow, which averages over all the pixels that fall into one: the
    released weights were trained and measured on images that were not smoothed.

    Args:
        height, width: size of the images it takes, in pixels.
        new_height, new_width: size of those it returns.
    """

    def __init__(self, height: int, width: int, new_height: int, new_width: int) -> None:
        super().__init__()
        self.height, self.width = height, width
        self.new_height, self.new_width = new_height, new_width

    def _resize(self, image: Array, interpolation: int) -> Array:
        if image.shape[:2] != (self.height, self.width):
            raise ValueError(
                f"image of {image.shape[0]}x{image.shape[1]} px for a resize from "
                f"{self.height}x{self.width} px: make the transform from the image it is applied to"
            )
        resized = cv2.resize(image, (self.new_width, self.new_height), interpolation=interpolation)
        return resized.reshape(
            self.new_height, self.new_width, *image.shape[2:]
        )  # OpenCV drops a last axis of 1

    def apply_image(self, img: Array) -> Array:
        """Resize an image ``(H, W)`` or ``(H, W, C)`` of uint8 or float."""
        return self._resize(img, cv2.INTER_LINEAR)

    def apply_segmentation(self, segmentation: Array) -> Array:
        """Resize an array of labels ``(H, W)``, by nearest neighbour."""
        return self._resize(segmentation, cv2.INTER_NEAREST)

    def apply_coords(self, coords: Array) -> Array:
        """Scale points ``(N, 2)``, x before y, in pixels; boxes and polygons go through here."""
        return coords * np.array([self.new_width / self.width, self.new_height / self.height])

    def inverse(self) -> OpenCVResize:
        return OpenCVResize(self.new_height, self.new_width, self.height, self.width)


class ResizeToFit(Augmentation):
    """Resize an image, up or down, to the largest size of its shape that fits into two edge lengths.

    ``scale = min(long_edge / long side, short_edge / short side)``, sides rounded to
    ``int(side * scale + 0.5)``. For ``long_edge=1120, short_edge=672`` an image of 640x480 px becomes
    896x672, one of 640x360 becomes 1120x630.

    Args:
        long_edge: largest length of the longer side, in pixels.
        short_edge: largest length of the shorter side.

    Raises:
        ValueError: when an edge is not positive or ``long_edge < short_edge``.
    """

    def __init__(self, long_edge: int, short_edge: int) -> None:
        super().__init__()
        if not 0 < short_edge <= long_edge:
            raise ValueError(
                f"cannot fit images into a long edge of {long_edge} and a short edge of {short_edge} px: "
                "expected 0 < short_edge <= long_edge"
            )
        self.long_edge, self.short_edge = long_edge, short_edge

    def get_transform(self, image: Array) -> OpenCVResize:
        height, width = image.shape[:2]
        scale = min(self.long_edge / max(height, width), self.short_edge / min(height, width))
        new_height, new_width = (max(int(side * scale + 0.5), 1) for side in (height, width))
        return OpenCVResize(height, width, new_height, new_width)


class RandomResizeToFit(Augmentation):
    """:class:`ResizeToFit` with a short edge drawn anew for each image.

    Args:
        long_edge: largest length of the longer side, in pixels.
        short_edges: largest lengths of the shorter side, each as likely.
    """

    def __init__(self, long_edge: int, short_edges: Sequence[int]) -> None:
        super().__init__()
        self.resizes = [ResizeToFit(long_edge, short_edge) for short_edge in short_edges]

    def get_transform(self, image: Array) -> OpenCVResize:
        return self.resizes[np.random.randint(len(self.resizes))].get_transform(image)


class RandomScaleToFit(Augmentation):
    """:class:`ResizeToFit` with both edges times a factor drawn anew for each image.

    Args:
        long_edge, short_edge: as there, at a factor of 1.
        low, high: smallest and largest factor.
    """

    def __init__(self, long_edge: int, short_edge: int, low: float, high: float) -> None:
        super().__init__()
        self.long_edge, self.short_edge, self.low, self.high = long_edge, short_edge, low, high

    def get_transform(self, image: Array) -> OpenCVResize:
        factor = np.random.uniform(self.low, self.high)
        edges = (max(int(edge * factor), 1) for edge in (self.long_edge, self.short_edge))
        return ResizeToFit(*edges).get_transform(image)


class ResizeToCover(Augmentation):
    """Resize an image, up or down, until its shorter side has one length; the longer one is as it may.

    Args:
        short_edge: length of the shorter side, in pixels.
        longest: what the longer side may come to; a line of pixels would have no bounds.
    """

    def __init__(self, short_edge: int, longest: int = 16384) -> None:
        super().__init__()
        self.short_edge, self.longest = short_edge, longest

    def get_transform(self, image: Array) -> OpenCVResize:
        height, width = image.shape[:2]
        scale = self.short_edge / min(height, width)
        new_height, new_width = (int(side * scale + 0.5) for side in (height, width))
        if max(new_height, new_width) > self.longest:
            raise ValueError(
                f"an image of {width}x{height} px would become {new_width}x{new_height}: expected a longer "
                f"side of at most {self.longest}"
            )
        return OpenCVResize(height, width, new_height, new_width)


class OneOf(Augmentation):
    """One of several lists of augmentations, each as likely.

    Args:
        policies: the lists.
    """

    def __init__(self, policies: Sequence[Sequence[Augmentation]]) -> None:
        super().__init__()
        self.policies = [AugmentationList(list(policy)) for policy in policies]

    def __call__(self, aug_input: Any) -> Transform:
        return self.policies[np.random.randint(len(self.policies))](aug_input)
