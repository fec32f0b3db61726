"""What branches and the merged map respond to, as colours: principal components of their features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from ..backbone import PIIP
from ..images import Image

__all__ = ["Observation", "Response", "enlarge", "find_piip", "observed", "principal_colours", "responses"]

_TAILS = 0.01  # share of cells at either end of a component that may be saturated


@dataclass(frozen=True)
class Response:
    """A map as a picture.

    Attributes:
        name: "branch 1", ..., "merged".
        picture: one colour per cell, ``(h, w, 3)``, uint8, RGB.
        explained: share of the features' variance that the colours show.
        seen: height and width of the image that the branch looks at, in pixels; None for the merged map.
        channels: of the map.
    """

    name: str
    picture: Image
    explained: float
    seen: tuple[int, int] | None
    channels: int


def find_piip(model: nn.Module) -> PIIP:
    """The image pyramid network of a model.

    Raises:
        ValueError: it has none.
    """
    for module in model.modules():
        if isinstance(module, PIIP):
            return module
    raise ValueError(f"{type(model).__name__} has no PIIP: the page shows branches, give a config with some")


def principal_colours(features: Tensor) -> tuple[Image, float]:
    """Red, green and blue for the three directions in which the features of a map vary most.

    A component's sign is chosen so that its largest weight is positive; each is stretched to the full range
    of a colour, but for the outermost cells. Cells of one map can be compared by their colours, maps cannot.

    Args:
        features: ``(h, w, C)``.

    Returns:
        ``(h, w, 3)``, uint8, RGB, grey where nothing varies; and the share of the variance that it shows.
    """
    height, width, channels = features.shape
    cells = features.reshape(-1, channels).double().cpu()
    cells = cells - cells.mean(dim=0)
    variances, directions = torch.linalg.eigh(cells.T @ cells / len(cells))  # ascending
    kept = min(3, channels)
    directions = directions.flip(1)[:, :kept]
    largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
    components = cells @ (directions * largest.sign())
    low = components.quantile(_TAILS, dim=0)
    span = components.quantile(1 - _TAILS, dim=0) - low
    total = float(variances.clamp(min=0).sum())
    colours = torch.full((len(cells), 3), 0.5, dtype=torch.float64)
    varies = span > 1e-6 * max(total, 1e-12) ** 0.5
    colours[:, :kept][:, varies] = ((components - low) / span.clamp(min=1e-30))[:, varies].clamp(0, 1)
    shown = float(variances.flip(0)[:kept].clamp(min=0).sum()) / total if total > 0 else 0.0
    picture = (colours * 255).round().to(torch.uint8).reshape(height, width, 3).numpy()
    return picture, shown


@dataclass
class Observation:
    """What went through a PIIP.

    Attributes:
        size: height and width of its input, padding included.
        images: how many went through, such as the windows of a segmentor.
        maps: the branches' last maps, ``(1, h, w, C)``, if one image went through.
        merged: the merged map, ``(1, C, h, w)``, if one image went through.
    """

    size: tuple[int, int] = (0, 0)
    images: int = 0
    maps: Sequence[Tensor] = ()
    merged: Tensor | None = None


@contextmanager
def observed(piip: PIIP) -> Iterator[Observation]:
    """Observe a PIIP while the context lasts.

    Raises:
        ValueError: the network merges nothing.
    """
    if piip.merge is None:
        raise ValueError("this PIIP merges nothing (merge=None): there is no merged map to show")
    seen = Observation()

    def begin(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.size = (inputs[0].shape[2], inputs[0].shape[3])
        seen.images += len(inputs[0])

    def end(module: nn.Module, inputs: tuple[Any, ...], merged: Tensor) -> None:
        alone = seen.images == 1
        seen.maps, seen.merged = (list(inputs[0]), merged) if alone else ((), None)

    handles = [piip.register_forward_pre_hook(begin), piip.merge.register_forward_hook(end)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def responses(piip: PIIP, seen: Observation, filled: tuple[int, int]) -> list[Response]:
    """The branches' last maps and the merged map of one image, each as a picture.

    Args:
        piip: the network observed.
        seen: what went through it: one image.
        filled: height and width of that image without its padding, which the pictures leave out.

    Raises:
        ValueError: not one image was seen.
    """
    if seen.merged is None:
        raise ValueError(f"{seen.images} images went through the network: expected one")
    share = filled[0] / seen.size[0], filled[1] / seen.size[1]
    shown = []
    for number, (features, side) in enumerate(zip(seen.maps, piip.image_sizes, strict=True), start=1):
        looked_at = (round(filled[0] * side / piip.input_size), round(filled[1] * side / piip.input_size))
        shown.append(_response(f"branch {number}", features[0], share, looked_at))
    return [*shown, _response("merged", seen.merged[0].permute(1, 2, 0), share, None)]


def _response(name: str, features: Tensor, share: Sequence[float], seen: tuple[int, int] | None) -> Response:
    height, width = (max(round(n * s), 1) for n, s in zip(features.shape[:2], share, strict=True))
    picture, explained = principal_colours(features[:height, :width])
    return Response(name, picture, explained, seen, features.shape[2])


def enlarge(picture: Image, side: int) -> Image:
    """A picture whose longer side has at least that many pixels, its cells still squares."""
    factor = max(-(-side // max(picture.shape[:2])), 1)
    size = (picture.shape[1] * factor, picture.shape[0] * factor)
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_NEAREST), dtype=np.uint8)
