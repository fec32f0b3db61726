"""A picture of a detector, drawn from the model: its branches, stages, interactions, and their cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from torch import nn

from piip.backbone import PIIP
from piip.flops import Part
from piip.measure.cost import detector_cost, find_trunk

__all__ = ["Layout", "draw_architecture", "layout"]

_COLOURS = ("#0072b2", "#d55e00", "#2c8c5a", "#8256a8", "#b3872a", "#5a5a5a")  # a branch each, then again
_WIDTH = 12.8  # of the picture, in its own units
_STAGES = (3.35, 9.6)  # where the stages begin and end


@dataclass(frozen=True)
class Row:
    """A branch, as the picture has it."""

    name: str
    image_size: int
    blocks: list[int]
    gflops: float
    params_m: float


@dataclass(frozen=True)
class Layout:
    """What the picture shows.

    Attributes:
        rows: the branches, smallest image first.
        links: (source, target) of the interactions, branches counted from 1.
        interactions: how many there are.
        after: what follows the branches: name -> cost.
        interaction_gflops: of all interactions.
    """

    rows: list[Row]
    links: list[tuple[int, int]]
    interactions: int
    after: dict[str, Part]
    interaction_gflops: float


def layout(detector: nn.Module) -> Layout:
    """What a picture of a detector shows, read from the model on the meta device.

    Raises:
        ValueError: it has no PIIP, or cannot be counted.
    """
    _, piip = find_trunk(detector.backbone)  # type: ignore[arg-type]
    if not isinstance(piip, PIIP):
        raise ValueError(f"{type(piip).__name__} is no PIIP: there are no branches to draw")
    parts = detector_cost(detector).total.parts
    rows = []
    for number, (branch, side, stages) in enumerate(
        zip(piip.branches, piip.image_sizes, piip.stages, strict=True), start=1
    ):
        part = parts[f"branch{number}"]
        blocks = [last - first + 1 for first, last in stages]
        rows.append(Row(_name(branch), side, blocks, part.gflops, part.params_m))
    links = [
        link
        for (small, large), unit in _units(piip).items()
        for link, injector in (
            ((large, small), unit.large_to_small),
            ((small, large), unit.small_to_large),
        )
        if injector is not None
    ]
    interactions = parts.get("interactions", Part())
    heads = Part()
    for name, part in parts.items():
        if name not in ("merge", "neck", "interactions", "resizing") and not name.startswith("branch"):
            heads.add((), macs=part.macs, params=part.params)
    after = {"merge": parts["merge"], "neck": parts["neck"], "heads": heads}
    return Layout(rows, links, len(piip.interactions), after, interactions.gflops)


def _units(piip: PIIP) -> Mapping[tuple[int, int], Any]:
    if not piip.interactions:
        return {}
    first = piip.interactions[0]
    return dict(zip(first.pairs, first.units.values(), strict=True))


def _name(branch: nn.Module) -> str:
    kind = type(branch).__name__.removesuffix("Branch")
    width = getattr(branch, "embed_dim", None)
    return f"{kind}, {width} channels" if width else kind


def draw_architecture(detector: nn.Module, title: str) -> Figure:
    """The picture of a detector.

    Rows are branches, the largest image at the top; a box is a stage, with the number of its blocks; arrows
    are the directions of an interaction, which follows every stage. What follows the branches stands to the
    right. Costs are GFLOPs of one image, one multiply-add being one.

    Args:
        detector: on the meta device.
        title: written above.

    Raises:
        ValueError: as :func:`layout`.
    """
    shown = layout(detector)
    count = len(shown.rows)
    size, box = (11, 1.15 * count + 1.1), (0.01, 0.02, 0.98, 0.9)
    bottom, top = -0.75, count - 0.4
    square = (box[3] * size[1] / (top - bottom)) / (box[2] * size[0] / _WIDTH)  # as wide as tall, on paper
    figure = Figure(figsize=size)
    axes = figure.add_axes(box)
    largest = max(row.image_size for row in shown.rows)
    stages = len(shown.rows[0].blocks)
    left, right = _STAGES
    step = (right - left) / stages
    for index, row in enumerate(shown.rows):
        colour = _COLOURS[index % len(_COLOURS)]
        y = float(index)
        side = 0.78 * row.image_size / largest
        width = square * side
        axes.add_patch(Rectangle((0.5 - width / 2, y - side / 2), width, side, color=colour, alpha=0.35))
        axes.text(0.5, y, f"{row.image_size}", ha="center", va="center", fontsize=9)
        text = f"branch {index + 1}: {row.name}\n{row.params_m:.1f} M parameters, {row.gflops:.1f} GFLOPs"
        axes.text(1.15, y, text, va="center", fontsize=8)
        axes.plot([left, right + 0.1], [y, y], color=colour, linewidth=1, zorder=0)
        for stage, blocks in enumerate(row.blocks):
            x = left + stage * step
            axes.add_patch(Rectangle((x, y - 0.17), 0.55 * step, 0.34, facecolor=colour, edgecolor="none"))
            axes.text(x + 0.275 * step, y, f"{blocks}", ha="center", va="center", fontsize=8, color="white")
    for stage in range(shown.interactions):
        x = left + (stage + 0.77) * step
        for source, target in shown.links:
            shift = 0.07 * step * (1 if source < target else -1)
            _arrow(axes, (x + shift, source - 1), (x + shift, target - 1))
    _after(axes, shown, right, count)
    axes.set_xlim(0, _WIDTH)
    axes.set_ylim(bottom, top)
    axes.set_axis_off()
    figure.suptitle(title, fontsize=10, y=0.985)
    return figure


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    style = "-|>,head_length=3,head_width=1.6"
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle=style, color="#444444", linewidth=0.8, shrinkA=1))


def _after(axes: Axes, shown: Layout, right: float, count: int) -> None:
    """Merge, neck and heads, and what all interactions cost."""
    middle = (count - 1) / 2
    for place, (name, part) in enumerate(shown.after.items()):
        x = right + 0.35 + place * 0.95
        height = count - 0.3 if name == "merge" else 0.9
        axes.add_patch(
            Rectangle((x, middle - height / 2), 0.8, height, facecolor="#e4e7ea", edgecolor="#888888")
        )
        text = f"{name}\n{part.gflops:.1f}\nGFLOPs"
        axes.text(x + 0.4, middle, text, ha="center", va="center", fontsize=8)
        if place:
            _arrow(axes, (x - 0.15, middle), (x, middle))
    if shown.interactions:
        text = f"{shown.interactions} interactions: {shown.interaction_gflops:.1f} GFLOPs"
        axes.text(sum(_STAGES) / 2, -0.6, text, ha="center", va="center", fontsize=8, color="#444444")
