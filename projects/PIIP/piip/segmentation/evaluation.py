"""Mean IoU, computed as for the published results."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import Tensor

from .data import read_labels
from .heads import IGNORED
from .predict import SemanticRenderer

__all__ = ["SemanticEvaluator", "confusion", "metrics"]


def confusion(prediction: Tensor, truth: Tensor, num_classes: int) -> Tensor:
    """Pixels ``(classes, classes)`` int64 of each true (row) and predicted (column) class.

    Args:
        prediction: classes, of any shape.
        truth: the same shape; 255 where a pixel does not count.
        num_classes: how many there are.
    """
    counted = truth != IGNORED
    pairs = truth[counted].long() * num_classes + prediction[counted].long()
    return torch.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def metrics(pixels: Tensor, names: Sequence[str]) -> dict[str, float]:
    """Figures in percent from the confusion of a whole data set.

    A class in neither truth nor prediction counts in no mean. One that is predicted but absent has an IoU of
    0, as published; Detectron2's evaluator leaves it out. Accuracy is over the classes in the truth.

    Args:
        pixels: see :func:`confusion`.
        names: of the classes.

    Returns:
        "mIoU", "mACC" (mean accuracy of classes), "pACC" (share of pixels that are right), and "IoU-name" and
        "ACC-name" of each class, nan where it has none.
    """
    counts = pixels.double()
    right, truth = counts.diagonal(), counts.sum(1)
    iou = 100 * right / (truth + counts.sum(0) - right)  # 0 / 0 is nan
    accuracy = 100 * right / truth
    return {
        "mIoU": iou.nanmean().item(),
        "mACC": accuracy.nanmean().item(),
        "pACC": (100 * right.sum() / counts.sum()).item(),
        **{f"IoU-{name}": value for name, value in zip(names, iou.tolist(), strict=True)},
        **{f"ACC-{name}": value for name, value in zip(names, accuracy.tolist(), strict=True)},
    }


class SemanticEvaluator(DatasetEvaluator):
    """Confusion of predicted and true classes over a data set, and over all processes.

    Args:
        dataset_name: registered; its metadata name the classes and the label that is ignored.
    """

    def __init__(self, dataset_name: str) -> None:
        self.metadata = MetadataCatalog.get(dataset_name)
        self.names: list[str] = list(self.metadata.stuff_classes)
        self.ignore_label: int = self.metadata.get("ignore_label", IGNORED)
        self.reset()

    def reset(self) -> None:
        self.pixels = torch.zeros(len(self.names), len(self.names), dtype=torch.int64)

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Tensor]]) -> None:
        """Count the pixels of a batch.

        Raises:
            ValueError: the label map is of another size than the image, or holds what is no class.
        """
        for record, output in zip(inputs, outputs, strict=True):
            prediction = output["sem_seg"].argmax(dim=0).cpu()
            file = record["sem_seg_file_name"]
            truth = torch.from_numpy(read_labels(file, len(self.names), self.ignore_label))
            if truth.shape != prediction.shape:
                raise ValueError(
                    f"label map {file} has {truth.shape[1]}x{truth.shape[0]} px, its image "
                    f"{prediction.shape[1]}x{prediction.shape[0]}: expected the same"
                )
            self.pixels += confusion(prediction, truth, len(self.names))

    def evaluate(self) -> dict[str, dict[str, float]]:
        """``{"sem_seg": ...}`` as :func:`metrics` gives them; empty on all but the main process."""
        gathered = comm.gather(self.pixels)
        return {"sem_seg": metrics(torch.stack(gathered).sum(0), self.names)} if gathered else {}

    def renderer(self) -> SemanticRenderer:
        """Draws a segmentor's output during an evaluation."""
        return SemanticRenderer(self.metadata)

    def summary(self, results: Mapping[str, Mapping[str, float]]) -> str:
        """A table with one line per class, logged after an evaluation."""
        figures = results["sem_seg"]
        width = max(map(len, [*self.names, "pixels right"]))
        lines = [f"{'class':{width}}     IoU     acc"]
        for name in self.names:
            values = (figures[f"IoU-{name}"], figures[f"ACC-{name}"])
            cells = "".join("     n/a" if math.isnan(value) else f"{value:8.1f}" for value in values)
            lines.append(f"{name:{width}}{cells}")
        lines.append(f"{'mean':{width}}{figures['mIoU']:8.1f}{figures['mACC']:8.1f}")
        lines.append(f"{'pixels right':{width}}{figures['pACC']:16.1f}")
        return "semantic segmentation in percent:\n" + "\n".join(lines)
