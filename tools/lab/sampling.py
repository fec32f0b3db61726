"""Where deformable attention looks: its sampling points, in the image (paper section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

from piip.backbone import PIIP
from piip.cross_attention import DeformableCrossAttention
from piip.images import Image
from piip.interaction import InteractionUnit
from piip.serve.analysis import Model

__all__ = ["SamplingPoints", "backbone_input", "draw_sampling", "sampling_points"]


@dataclass(frozen=True)
class SamplingPoints:
    """Where every query of one attention layer looks.

    Attributes:
        source, target: numbers of the branches, from 1: the target looks at the source.
        places: ``(h, w, heads, points, 2)``, shares of the image's width and height, (x, y); they may lie
            outside [0, 1], where zeros are read.
        weights: ``(h, w, heads, points)``; those of a head sum to 1.
    """

    source: int
    target: int
    places: Tensor
    weights: Tensor


def locations(layer: DeformableCrossAttention, query: Tensor, feat: Tensor) -> tuple[Tensor, Tensor]:
    """Sampling places and weights of a layer, see :class:`SamplingPoints`.

    Args:
        layer: the attention.
        query: the map that looks, ``(1, h, w, C)``.
        feat: the map that is looked at, ``(1, h', w', C')``.
    """
    height, width = query.shape[1:3]
    shape = height, width, layer.num_heads, layer.num_points
    offsets = layer.sampling_offsets(query).reshape(*shape, 2)
    weights = layer.attention_weights(query).reshape(shape).softmax(dim=-1)
    y = (torch.arange(height) + 0.5).to(offsets) / height  # a query's own place: the centre of its cell
    x = (torch.arange(width) + 0.5).to(offsets) / width
    own = torch.stack(torch.broadcast_tensors(x[None, :], y[:, None]), dim=-1)
    cells = offsets.new_tensor([feat.shape[2], feat.shape[1]])  # offsets are in cells of the other map
    return own[:, :, None, None] + offsets / cells, weights


def backbone_input(model: Model, image: Image) -> tuple[Image, Tensor]:
    """An image as the backbone gets it, whole.

    Args:
        model: whose backbone.
        image: ``(H, W, 3)``, BGR, uint8.

    Returns:
        It as a picture, RGB, resized and padded as for the model, and normalised, ``(1, 3, H, W)``.
    """
    detector: Any = model.detector
    padded = model.padded(model.predictor.prepare(image, image.shape[:2])["image"])
    pixels = (padded[0] * detector.pixel_std + detector.pixel_mean).clamp(0, 255).round()
    picture = pixels.permute(1, 2, 0).to("cpu", torch.uint8).numpy()
    if detector.input_format == "BGR":
        picture = picture[:, :, ::-1]
    return np.ascontiguousarray(picture), padded


@torch.inference_mode()
def sampling_points(piip: PIIP, image: Tensor, stage: int = -1) -> list[SamplingPoints]:
    """What the deformable attention of one interaction looks at, for one image.

    Args:
        piip: in evaluation mode.
        image: normalised and padded, ``(1, 3, H, W)``.
        stage: whose interaction; -1 for the last.

    Returns:
        One entry per direction, in the order in which they run.

    Raises:
        ValueError: there are no interactions, or they have no deformable attention.
    """
    if not piip.interactions:
        raise ValueError("this PIIP has no interactions: nothing looks at another branch")
    found: list[SamplingPoints] = []
    handles = []
    interaction = piip.interactions[stage]
    for (small, large), module in zip(interaction.pairs, interaction.units.values(), strict=True):
        unit = cast(InteractionUnit, module)
        for injector, source, target in (
            (unit.large_to_small, large, small),
            (unit.small_to_large, small, large),
        ):
            if injector is None:
                continue
            if not isinstance(injector.attn, DeformableCrossAttention):
                raise ValueError(
                    "these interactions attend to whole maps: only deformable attention has points"
                )

            def record(
                layer: nn.Module, inputs: tuple[Any, ...], pair: tuple[int, int] = (source, target)
            ) -> None:
                places, weights = locations(cast(DeformableCrossAttention, layer), *inputs)
                found.append(SamplingPoints(*pair, places.cpu(), weights.cpu()))

            handles.append(injector.attn.register_forward_pre_hook(record))
    try:
        piip(image)
    finally:
        for handle in handles:
            handle.remove()
    return found


def draw_sampling(
    axes: Axes, image: Image, points: SamplingPoints, queries: Sequence[tuple[float, float]]
) -> None:
    """Draw what some places of an image look at: one cross each, and its points, larger with their weight.

    Args:
        axes: to draw on.
        image: ``(H, W, 3)``, RGB, as much of it as the maps show.
        points: those of all queries.
        queries: places as shares of width and height, (x, y).
    """
    height, width = image.shape[:2]
    rows, columns = points.weights.shape[:2]
    axes.imshow(image)
    for number, (x, y) in enumerate(queries):
        row, column = min(int(y * rows), rows - 1), min(int(x * columns), columns - 1)
        places = points.places[row, column].reshape(-1, 2)
        weights = points.weights[row, column].reshape(-1)
        colour = f"C{number}"
        axes.scatter(
            places[:, 0] * width - 0.5,
            places[:, 1] * height - 0.5,
            s=60 * weights,  # points^2, with 1/4 for weights that are all alike
            color=colour,
            edgecolors="white",
            linewidths=0.4,
            alpha=0.9,
        )
        own = ((column + 0.5) / columns * width - 0.5, (row + 0.5) / rows * height - 0.5)
        axes.plot(*own, marker="+", markersize=11, markeredgewidth=4, color="white")
        axes.plot(*own, marker="+", markersize=10, markeredgewidth=2, color=colour)
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)
    axes.set_axis_off()
    axes.set_title(f"branch {points.target} looks at branch {points.source}", fontsize=9)
