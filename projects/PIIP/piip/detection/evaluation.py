"""COCO evaluation with a table one can read."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Mapping
from typing import Any

from detectron2.evaluation import COCOEvaluator as Detectron2Evaluator

from .annotations import sensible_annotations
from .predict import InstanceRenderer

__all__ = ["COCOEvaluator", "summary"]

_COLUMNS = {"AP": "AP", "AP50": "AP50", "AP75": "AP75", "APs": "small", "APm": "medium", "APl": "large"}


def summary(results: Mapping[str, Mapping[str, float]]) -> str:
    """A table of AP, AP50, AP75 and AP by object size in percent, a line a task.

    Args:
        results: what a `COCOEvaluator` returns: "bbox", and "segm" where there are masks.
    """
    lines = [" " * 6 + "".join(f"{title:>8}" for title in _COLUMNS.values())]
    for task, name in (("bbox", "box"), ("segm", "mask")):
        if task in results:
            values = [results[task].get(key, math.nan) for key in _COLUMNS]
            lines.append(f"{name:6}" + "".join("     n/a" if math.isnan(v) else f"{v:8.1f}" for v in values))
    return "\n".join(lines)


class COCOEvaluator(Detectron2Evaluator):
    """Detectron2's evaluator on those annotations that make sense, which says in the end what it found.

    It leaves out what `register_coco` leaves out of the data, see :func:`sensible_annotations`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Arguments are Detectron2's."""
        super().__init__(*args, **kwargs)
        if "annotations" in self._coco_api.dataset:
            self._coco_api.dataset = sensible_annotations(self._coco_api.dataset).content
            with contextlib.redirect_stdout(io.StringIO()):
                self._coco_api.createIndex()

    def renderer(self) -> InstanceRenderer:
        """What draws a detector's output in an evaluation."""
        return InstanceRenderer(self._metadata)

    def summary(self, results: Mapping[str, Mapping[str, float]]) -> str:
        """The lines to log after an evaluation; `results` as :func:`summary` takes them."""
        return f"COCO average precision in percent:\n{summary(results)}"
