"""The published cost tables, row by row: the published figure, the same counted here, and the actual cost."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cache
from importlib import resources
from typing import Any

from lab.recipes import CannotBuild, build_classifier_row, build_row, letters_and_sizes
from piip import PIIP
from piip.branches import ViTBranch
from piip.flops.actual import actual_cost, padded_tokens, run_blocks, token_shapes
from piip.flops.published import published_cost
from piip.flops.tracing import build_on_meta
from piip.interaction import Link
from piip.neck import DeconvPyramid

__all__ = ["TABLES", "published_rows", "reproduce"]

TABLES = (
    "main",
    "appendix_b",
    "designs",
    "interactions",
    "directions",
    "out_branches",
    "pretraining",
    "classification",
)

_PARAMS_TOLERANCE_M = 1.0
_RELATIVE_TOLERANCE = 0.002


@dataclass(frozen=True)
class _Cost:
    gflops: float | None  # None where the published accounting has no rule
    params_m: float | None
    gflops_actual: float
    gflops_released_rules: float
    params_m_actual: float


@dataclass(frozen=True)
class _Reading:
    """One way to understand a row that the paper leaves open: the mean over models with these links.

    Two sets of links stand for a model that uses them at every other stage; a cost is linear in stages, so it
    is the mean of the two.
    """

    text: str
    links: Sequence[str | tuple[Link, ...]]


_DOWN, _UP = ((2, 1), (3, 2)), ((1, 2), (2, 3))  # from large images to small ones, and back
_READINGS = (
    _Reading("adjacent branches, one direction a stage, alternating", (_DOWN, _UP)),
    _Reading("adjacent branches, large image to small only", (_DOWN,)),
    _Reading("adjacent branches, small image to large only", (_UP,)),
    _Reading("only 3->1", (((3, 1),),)),
    _Reading("cycle 1->2->3->1", (((1, 2), (2, 3), (3, 1)),)),
    _Reading("cycle 1->3->2->1", (((1, 3), (3, 2), (2, 1)),)),
    _Reading("2->1, 3->2 and 2->3", (((2, 1), (3, 2), (2, 3)),)),
    _Reading("all pairs, one direction a stage, alternating", ((*_DOWN, (3, 1)), (*_UP, (1, 3)))),
)


@cache
def published_rows() -> tuple[Mapping[str, Any], ...]:
    """All published rows, of all tables, as the project keeps them."""
    text = resources.files(__package__).joinpath("published.json").read_text(encoding="utf-8")
    return tuple(json.loads(text)["rows"])


def reproduce(table: str) -> Iterator[dict[str, Any]]:
    """Count every row of a published table.

    Args:
        table: one of :data:`TABLES`.

    Yields:
        A dict for each row, in the order of the table: "model", "resolution", "gflops_published", "gflops",
        "difference_percent", "params_m_published", "params_m" (the latter two in published accounting),
        "gflops_actual" (up to the merged map, or up to the deconvolution stack of a single transformer, which
        merges nothing; of a classifier without its heads), "params_m_actual" (the stack included), "status",
        "gflops_released_rules", and whatever else was published of the row. What is not known, or cannot be
        counted, is None.

        The released counter differs from the actual cost in one rule: it leaves out attention among the
        padding of windows. "gflops_released_rules" does too, and is what "gflops_released_backbone" compares
        with.

    Raises:
        ValueError: unknown table.
    """
    if table not in TABLES:
        raise ValueError(f"unknown table {table!r}: expected one of {', '.join(TABLES)}")
    for row in published_rows():
        if row["table"] == table:
            yield _reproduce_row(row)


def _reproduce_row(row: Mapping[str, Any]) -> dict[str, Any]:
    try:
        cost: _Cost | None
        extra: dict[str, Any]
        if row["table"] == "directions":
            cost, extra, status = _directions(row)
        elif row["table"] == "out_branches":
            cost, extra, status = _out_branches(row)
        elif row["table"] == "classification":
            cost, extra, status = _classifier(row), {}, None
        else:
            cost, extra, status = _count(row), {}, None
    except CannotBuild as reason:
        cost, extra, status = None, {}, f"cannot be built: {reason}"
    gflops = cost.gflops if cost else None
    result = {
        "model": row["model"],
        "resolution": row["resolution"],
        "gflops_published": row.get("gflops_published"),
        "gflops": gflops,
        "difference_percent": _difference(row, gflops),
        "params_m_published": row.get("params_m_published"),
        "params_m": cost and cost.params_m,
        "gflops_actual": cost and cost.gflops_actual,
        "params_m_actual": cost and cost.params_m_actual,
        "status": status or _status(row, cost),
    }
    extra = {"gflops_released_rules": cost and cost.gflops_released_rules, **extra}
    return {**result, **{key: value for key, value in row.items() if key not in result}, **extra}


def _difference(row: Mapping[str, Any], gflops: float | None) -> float | None:
    published = row.get("gflops_published")
    return None if published is None or gflops is None else 100 * (gflops - published) / published


def _reproduces(row: Mapping[str, Any], gflops: float) -> bool:
    """Within 0.2 percent, or within half of the last printed digit.

    Figures were rounded to two decimals before they were printed (175.499 became 175.50, then 176).
    """
    published = row["gflops_published"]
    half_digit = (0.5 if isinstance(published, int) else 0.05) + 0.005
    return abs(gflops - published) <= max(_RELATIVE_TOLERANCE * published, half_digit)


def _status(row: Mapping[str, Any], cost: _Cost | None) -> str:
    assert cost is not None  # rows without a cost say why
    if cost.gflops is None or cost.params_m is None:
        return "no published GFLOPs, and no rule in the published accounting for this branch family"
    if row.get("gflops_published") is None:
        return "no published GFLOPs"
    if not _reproduces(row, cost.gflops):
        return "GFLOPs differ"
    params = row.get("params_m_published")
    if params is not None and abs(cost.params_m - params) > _PARAMS_TOLERANCE_M:
        return "parameters differ"
    return "reproduced"


def _count(row: Mapping[str, Any], **options: Any) -> _Cost:
    # rows of several tables describe one model: count it once
    settings = ("model", "resolution", "window", "pretraining", "num_interactions", "attention")
    return _count_once(json.dumps({key: row[key] for key in settings if key in row}), json.dumps(options))


@cache
def _count_once(row: str, options: str) -> _Cost:
    with build_on_meta():
        piip = build_row(json.loads(row), **json.loads(options))
        dim = piip.out_channels
        pyramid = DeconvPyramid((dim, dim), norm="group" if len(piip.branches) > 1 else "layer")
    plain = all(type(branch) is ViTBranch for branch in piip.branches)
    published = published_cost(piip).total if plain else None
    actual = actual_cost(piip, pyramid=pyramid)
    gflops = actual.total.gflops
    if len(piip.branches) > 1:
        gflops -= actual.total.parts["neck"].gflops
    padding = _attention_padding(piip, actual.input_size) / 1e9
    return _Cost(
        published.gflops if published else None,
        published.params_m if published else None,
        gflops,
        gflops - padding,
        actual.total.params_m,
    )


def _attention_padding(piip: PIIP, input_size: tuple[int, int]) -> int:
    """Multiply-adds spent on the padding of windows by attention, whose rows there are cut off afterwards."""
    macs = 0
    shapes = token_shapes(piip, input_size)
    for branch, shape, stages in zip(piip.branches, shapes, piip.stages, strict=True):
        if isinstance(branch, ViTBranch):
            for block in run_blocks(branch, stages):
                window = block.attn.window_size
                if window is not None:
                    padding = padded_tokens(shape, window) - shape[0] * shape[1]
                    macs += 2 * padding * window**2 * branch.embed_dim
    return macs


def _classifier(row: Mapping[str, Any]) -> _Cost:
    with build_on_meta():
        piip = build_classifier_row(row)
    published, actual = published_cost(piip).total, actual_cost(piip)
    gflops = actual.total.gflops
    padding = _attention_padding(piip, actual.input_size) / 1e9
    return _Cost(published.gflops, published.params_m, gflops, gflops - padding, actual.total.params_m)


_Answer = tuple[_Cost, dict[str, Any], str | None]


def _directions(row: Mapping[str, Any]) -> _Answer:
    known = {4: "adjacent", 5: "all"}.get(row["direction_type"])
    if known:
        return _count(row, links=known), {}, None
    costs = [_mean([_count(row, links=links) for links in reading.links]) for reading in _READINGS]
    gflops = [cost.gflops for cost in costs if cost.gflops is not None]  # all: T, S and B are plain
    readings = [
        {
            "reading": reading.text,
            "gflops": count,
            "difference_percent": _difference(row, count),
            "reproduces": _reproduces(row, count),
        }
        for reading, count in zip(_READINGS, gflops, strict=True)
    ]
    # where several fit, or none, the figure does not tell what the row is: the closest stands for it
    best = min(range(len(costs)), key=lambda i: abs(gflops[i] - row["gflops_published"]))
    found = " or ".join(f"'{reading['reading']}'" for reading in readings if reading["reproduces"]) or "none"
    status = f"not defined in the paper; of {len(readings)} readings, reproduced by {found}"
    return costs[best], {"readings": readings}, status


def _mean(costs: Sequence[_Cost]) -> _Cost:
    """The cost of a model that is each of these in an equal share of its stages."""
    return _Cost(*(sum(values) / len(costs) for values in zip(*map(astuple, costs), strict=True)))


def _out_branches(row: Mapping[str, Any]) -> _Answer:
    models = letters_and_sizes(row)[::-1]  # branch 1 is the largest model
    kept = [
        number
        for number, (letter, _) in enumerate(models, start=1)
        if letter in row["out_branches"].split("+")
    ]
    cost = _count(row, merge_branches=kept)
    sizes = [size for _, size in models]
    # only the norm that the published counter puts after the merge sees the merged grid
    with build_on_meta():
        dim = build_row(row).out_channels
    grids = {
        "of the largest image": max(sizes),
        "of the largest merged branch": max(sizes[j - 1] for j in kept),
    }
    norms = {name: 2 * (size // 16) ** 2 * dim / 1e9 for name, size in grids.items()}
    assert cost.gflops is not None  # T, S and B are plain transformers
    here = cost.gflops - norms["of the largest image"]
    readings = [
        {"reading": f"merged on the grid {name}", "gflops": here + norm} for name, norm in norms.items()
    ]
    return cost, {"readings": readings}, "no published GFLOPs; merged on the grid of the largest image"
