"""Curves of metrics.json, which a training writes."""

from __future__ import annotations

import itertools
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from piip.engine.logs.metrics import read_records

if TYPE_CHECKING:  # Matplotlib takes a second to import
    from matplotlib.axes import Axes

__all__ = ["History", "draw", "read_metrics"]

History = dict[str, dict[int, float]]
"""Values of each metric by iteration."""

_PANELS = {  # title -> beginnings of the names in it, and whether its axis is logarithmic
    "losses": (("total_loss", "loss"), False),
    "results": (("bbox/", "segm/", "sem_seg/", "classification/"), False),
    "learning rates": (("lr",), True),
    "gradient norms": (("grad_norm",), True),
    "gammas": (("gamma/",), False),
    "images a second": (("images_per_s",), False),
    "waiting for data": (("data_wait",), False),
    "memory (MB)": (("memory_mb",), False),
}
_RESULTS = ("AP", "AP50", "mIoU", "top1")  # of the many that an evaluation has; classes have theirs, too
_COLUMNS, _WIDTH, _HEIGHT = 2, 6.4, 3.6  # of panels, in inches
_STYLES = ("-", "--", ":", "-.")  # of the runs
_FEW = 30  # points that are marked one by one
_IN_A_LEGEND, _NAMED = 12, 4  # curves


def read_metrics(run: Path) -> History:
    """The metrics of a run. Damaged lines, and what is no finite number, are left out.

    Args:
        run: an output folder, or its metrics.json.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it holds no metrics.
    """
    path = run / "metrics.json" if run.is_dir() else run
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give the output folder of a training")
    history: History = defaultdict(dict)
    for record in read_records(path)[0]:
        for name, value in record.items():
            number = isinstance(value, int | float) and abs(value) <= sys.float_info.max  # neither NaN
            if name != "iteration" and number:
                history[name][record["iteration"]] = value
    if not history:
        raise ValueError(f"{path} holds no metrics: has the run come to its first log period?")
    return history


def panels_of(history: Mapping[str, object]) -> dict[str, list[str]]:
    """Names of the metrics that are drawn, by panel; those without any are left out."""
    found = {}
    for title, (beginnings, _) in _PANELS.items():
        names = [name for name in history if name.startswith(beginnings)]
        if title == "losses":
            names = sorted({*names, *(name for name in history if "loss" in name)})
        if title == "results":
            names = [name for name in names if name.rpartition("/")[2] in _RESULTS]
        if names:
            found[title] = names
    return found


def draw(histories: Mapping[str, History], output: Path, *, smooth: int = 1) -> list[str]:
    """Draw runs into one picture, a panel for each kind of metric.

    Args:
        histories: see :func:`read_metrics`, by what the runs are called. Colours are metrics, lines runs.
        output: a .png, .svg or .pdf; its folder is made if missing.
        smooth: losses are medians of so many records up to each.

    Returns:
        Titles of the panels.

    Raises:
        ValueError: `smooth` is less than 1, or the picture's format is unknown.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    if smooth < 1:
        raise ValueError(f"smooth is {smooth}: expected the number of records in a median, at least 1")
    panels = panels_of({name: None for history in histories.values() for name in history})
    rows = math.ceil(len(panels) / _COLUMNS)
    figure, axes = plt.subplots(
        rows, _COLUMNS, figsize=(_COLUMNS * _WIDTH, rows * _HEIGHT), squeeze=False, layout="constrained"
    )
    for ax in axes.flat[len(panels) :]:
        ax.remove()
    for ax, (title, names) in zip(axes.flat, panels.items(), strict=False):
        for colour, name in enumerate(names):
            for style, (run, history) in zip(itertools.cycle(_STYLES), histories.items(), strict=False):
                iterations = sorted(history.get(name, {}))
                values = [history[name][iteration] for iteration in iterations]
                if title == "losses":
                    values = _medians(values, smooth)
                label = f"{run}: {name}" if len(histories) > 1 else name
                marker = "." if len(values) < _FEW else None
                ax.plot(
                    iterations, values, style, color=f"C{colour}", marker=marker, linewidth=1, label=label
                )
        ax.set(title=title, xlabel="iteration", yscale="log" if _PANELS[title][1] else "linear")
        ax.grid(alpha=0.3)
        if len(ax.lines) <= _IN_A_LEGEND:
            ax.legend(fontsize=6, ncols=1 + len(ax.lines) // 9)
        else:
            _name_the_highest(ax)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=120)
    plt.close(figure)
    return list(panels)


def _name_the_highest(ax: Axes) -> None:
    """Write the names of the curves that end highest at their ends; a legend would hide the curves."""
    for line in sorted(ax.lines, key=lambda line: -_last(line.get_ydata()))[:_NAMED]:
        name = str(line.get_label()).rpartition("/")[2]
        end = _last(line.get_xdata()), _last(line.get_ydata())
        colour = line.get_color()
        ax.annotate(name, end, (-4, 3), textcoords="offset points", ha="right", fontsize=6, color=colour)


def _last(data: Any) -> float:
    return float(data[-1])


def _medians(values: list[float], number: int) -> list[float]:
    """Of so many values up to each."""
    return [statistics.median(values[max(0, end - number) : end]) for end in range(1, len(values) + 1)]
