"""COCO evaluation with a short table."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator as Detectron2Evaluator

from .annotations import has_masks, read_annotations
from .predict import InstanceRenderer

__all__ = ["COCOEvaluator", "empty_dataset", "measurable", "summary"]

_logger = logging.getLogger("detectron2.piip")
_MAX_DETECTIONS = 100  # of pycocotools
_COLUMNS = {"AP": "AP", "AP50": "AP50", "AP75": "AP75", "APs": "small", "APm": "medium", "APl": "large"}


def summary(results: Mapping[str, Mapping[str, float]]) -> str:
    """A table of AP, AP50, AP75 and AP by object size in percent, one line per task.

    Args:
        results: what a `COCOEvaluator` returns: "bbox", and "segm" where there are masks.
    """
    lines = [" " * 6 + "".join(f"{title:>8}" for title in _COLUMNS.values())]
    for task, name in (("bbox", "box"), ("segm", "mask")):
        if task in results:
            values = [results[task].get(key, math.nan) for key in _COLUMNS]
            lines.append(f"{name:6}" + "".join("     n/a" if math.isnan(v) else f"{v:8.1f}" for v in values))
    return "\n".join(lines)


@contextlib.contextmanager
def empty_dataset() -> Iterator[str]:
    """The name of a dataset of nothing, for Detectron2's evaluators: they read files before any check."""
    name = "piip_empty"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "annotations.json")
        file.write_text('{"images": [], "annotations": [], "categories": []}')
        MetadataCatalog.get(name).json_file = str(file)
        try:
            yield name
        finally:
            MetadataCatalog.remove(name)


def measurable(tasks: Iterable[str], content: Mapping[str, Any]) -> list[str]:
    """Those of an evaluator's tasks for which the annotations have what they take."""
    if "segm" in (tasks := list(tasks)) and content.get("annotations") and not has_masks(content):
        _logger.warning("the annotations have no masks: only boxes are evaluated")
        tasks.remove("segm")
    return tasks


class COCOEvaluator(Detectron2Evaluator):
    """Detectron2's evaluator on checked annotations, which says in the end what it found."""

    _tasks: Any

    def __init__(self, dataset_name: str, *args: Any, **kwargs: Any) -> None:
        """Arguments are Detectron2's.

        Raises:
            ValueError: the annotation file cannot be read, see :func:`read_annotations`.
        """
        metadata = MetadataCatalog.get(dataset_name)
        if metadata.get("json_file") is None:  # Detectron2 writes one
            super().__init__(dataset_name, *args, **kwargs)
        else:
            with empty_dataset() as empty:
                super().__init__(empty, *args, **kwargs)
        content = read_annotations(metadata.json_file).content
        self._metadata, self._do_evaluation = metadata, "annotations" in content
        self._coco_api.dataset = content
        with contextlib.redirect_stdout(io.StringIO()):
            self._coco_api.createIndex()
        self._tasks = self._tasks and measurable(self._tasks, content)
        self._say_what_the_limit_costs()

    def _tasks_from_predictions(self, predictions: Any) -> list[str]:
        return measurable(super()._tasks_from_predictions(predictions), self._coco_api.dataset)

    def _say_what_the_limit_costs(self) -> None:
        limit = self._max_dets_per_image[-1] if self._max_dets_per_image else _MAX_DETECTIONS
        numbers = Counter(annotation["image_id"] for annotation in self._coco_api.anns.values())
        if over := [number for number in numbers.values() if number > limit]:
            _logger.warning(
                f"{len(over)} images have more than {limit} objects, up to {max(over)}. At most {limit} "
                "detections per image are counted: all other objects are missed. Raise max_dets_per_image of "
                "dataloader.evaluator and test_topk_per_image of the model's box_predictor"
            )

    def renderer(self) -> InstanceRenderer:
        """Draws a detector's output during an evaluation."""
        return InstanceRenderer(self._metadata)

    def summary(self, results: Mapping[str, Mapping[str, float]]) -> str:
        """The lines to log after an evaluation; `results` as :func:`summary` takes them."""
        return f"COCO average precision in percent:\n{summary(results)}"
