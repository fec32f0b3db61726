"""Compare the outputs of an exported model with those of the original."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from .boxes import nonempty
from .formats import Run
from .model import Exportable

__all__ = ["Report", "check", "compare", "timed"]

_Output = TypeVar("_Output")

BOX_TOLERANCE = 0.01
"""Pixels by which boxes may differ."""

SCORE_TOLERANCE = 1e-4
"""By how much scores and probabilities of classes may differ."""

MASK_TOLERANCE = 1e-3
"""Share of an image's pixels in which a mask may differ: its very edge may round either way."""

_REST = 0.1  # seconds; after 0.02 a run still takes a fifth longer

_OTHER_CLASS = 1e6  # a distance in pixels that no two boxes have


@dataclass
class Report:
    """What comparing found; differences are the largest of all.

    Attributes:
        images: how many were compared.
        detections: of the original; 0 for a model without.
        unmatched: detections that only one of the two made.
        boxes: in pixels.
        scores: of detections, or probabilities of classes.
        masks: share of the image's pixels.
        original_ms, exported_ms: milliseconds an image took, in the order of the images.
    """

    images: int = 0
    detections: int = 0
    unmatched: int = 0
    boxes: float = 0.0
    scores: float = 0.0
    masks: float = 0.0
    original_ms: list[float] = field(default_factory=list)
    exported_ms: list[float] = field(default_factory=list)

    @property
    def agrees(self) -> bool:
        """Whether all differences are within the tolerances."""
        return (
            self.unmatched == 0
            and self.boxes <= BOX_TOLERANCE
            and self.scores <= SCORE_TOLERANCE
            and self.masks <= MASK_TOLERANCE
        )

    def __str__(self) -> str:
        parts = [f"{self.images} images"]
        if self.detections or self.unmatched:
            parts += [
                f"{self.detections} detections, {self.unmatched} found by one side only",
                f"boxes differ by at most {self.boxes:.2g} px, masks in {100 * self.masks:.2g}% of pixels",
            ]
        parts.append(f"scores differ by at most {self.scores:.2g}")
        times = (statistics.median(self.original_ms), statistics.median(self.exported_ms))
        return f"{'; '.join(parts)}\nmedian time: {times[0]:.1f} ms as it was, {times[1]:.1f} ms exported"


def compare(original: dict[str, Tensor], exported: dict[str, Tensor], report: Report) -> None:
    """Add to a report how two outputs for one image differ.

    Detections are matched so that their boxes are as near as can be within a class: order among nearly equal
    scores is no difference. Boxes without area, which Detectron2 leaves out, are left out.

    Args:
        original: as `Exportable.reference` gives it.
        exported: as the exported model does, with an axis for the batch where it takes one.
        report: added to.
    """
    report.images += 1
    if "boxes" not in original:
        (name,) = original
        probabilities = (output[name].float().softmax(dim=1) for output in (original, exported))
        report.scores = max(report.scores, _largest(*probabilities))
        return
    if exported["boxes"].ndim == 3:
        exported = {name: value[0] for name, value in exported.items()}
    exported = {name: value[nonempty(exported["boxes"])] for name, value in exported.items()}
    distance = (original["boxes"][:, None] - exported["boxes"]).abs().amax(dim=-1)
    distance += (original["scores"][:, None] - exported["scores"]).abs()
    distance += _OTHER_CLASS * (original["classes"][:, None] != exported["classes"])
    rows, columns = (torch.as_tensor(np.asarray(index)) for index in linear_sum_assignment(distance.numpy()))
    same = original["classes"][rows] == exported["classes"][columns]
    rows, columns = rows[same], columns[same]
    report.detections += len(original["boxes"])
    report.unmatched += len(original["boxes"]) + len(exported["boxes"]) - 2 * len(rows)
    report.boxes = max(report.boxes, _largest(original["boxes"][rows], exported["boxes"][columns]))
    report.scores = max(report.scores, _largest(original["scores"][rows], exported["scores"][columns]))
    if "masks" in original and len(rows):
        differing = (original["masks"][rows] != exported["masks"][columns]).float().mean(dim=(1, 2))
        report.masks = max(report.masks, differing.max().item())


def _largest(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item() if a.numel() else 0.0


def check(model: Exportable, run: Run, images: Sequence[Tensor]) -> Report:
    """Run the original and an exported model on the same images, by turns.

    Args:
        model: the original.
        run: the exported one.
        images: each ``(3, H, W)``, 8 bits, in the model's channel order.

    Raises:
        ValueError: there is no image, or one is of a size that the model does not take.
    """
    if not images:
        raise ValueError("no image to compare on: give some")
    report = Report()
    for number, image in enumerate(images):
        _check_size(model, image)
        image = image.to(model.device)
        if number == 0:  # the first run of either sets things up
            model.reference(image)
            run(image[None].float())
        original, original_ms = timed(lambda: model.reference(image))  # noqa: B023 - called at once
        exported, exported_ms = timed(lambda: run(image[None].float()))  # noqa: B023
        report.original_ms.append(original_ms)
        report.exported_ms.append(exported_ms)
        compare(_on_cpu(original), _on_cpu(exported), report)
    return report


def _check_size(model: Exportable, image: Tensor) -> None:
    sides = tuple(image.shape[1:])
    if min(sides) < model.smallest:
        raise ValueError(f"an image of {sides} px is smaller than the model's window of {model.smallest} px")
    if model.largest is not None and max(sides) > model.largest:
        raise ValueError(f"an image of {sides} px is larger than the {model.largest} px it is padded to")


def _on_cpu(output: dict[str, Any]) -> dict[str, Tensor]:
    return {name: value.cpu() for name, value in output.items()}


@torch.inference_mode()
def timed(run: Callable[[], _Output]) -> tuple[_Output, float]:
    """What a run returns, and the milliseconds it took, on an idle processor.

    A rest comes before it: ONNX Runtime's threads keep spinning after a run and would slow down the next one.
    """
    time.sleep(_REST)
    start = time.perf_counter()
    result = run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, 1e3 * (time.perf_counter() - start)
