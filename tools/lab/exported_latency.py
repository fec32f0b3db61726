"""Times a model as it is, compiled, and in every format it can be exported to, side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from piip.export.check import timed
from piip.export.formats import FORMATS, load, trace, write
from piip.export.model import Exportable

__all__ = ["compare_exported"]


def compare_exported(
    model: Exportable, images: Sequence[Tensor], folder: Path, *, runs: int = 5
) -> list[dict[str, Any]]:
    """Latency of one image: PyTorch as it is ("eager"), under torch.compile, and each exported file.

    All take turns at every image; each has run the first image twice before the clock counts.

    Args:
        model: the model.
        images: of one size, each ``(3, H, W)``, 8 bits.
        folder: for the files.
        runs: how often each goes through the images.

    Returns:
        A dict for each: "runtime", "ms" (median), "spread_ms" (largest less smallest), "ratio" (to eager),
        "prepare_s" (to trace, write and load, or to compile), "mb" (of the file).
    """
    contenders: dict[str, Callable[[Tensor], Any]] = {"PyTorch eager": model.reference}
    prepared: dict[str, tuple[float | None, float | None]] = {"PyTorch eager": (None, None)}
    contenders["PyTorch compiled"] = partial(_on_one, torch.compile(model.module))
    for kind, suffix in FORMATS.items():
        start = time.perf_counter()
        path = folder / f"{kind}{suffix}"
        write(model, trace(model), kind, path)  # a graph of its own: translating to ONNX leaves symbols in it
        run = load(model, kind, path)
        name = {"torch-export": "torch.export", "onnx": "ONNX Runtime", "aotinductor": "AOTInductor"}[kind]
        contenders[name] = partial(_on_one, run)
        prepared[name] = (time.perf_counter() - start, path.stat().st_size / 2**20)
    start = time.perf_counter()
    with torch.inference_mode():
        contenders["PyTorch compiled"](images[0])
    prepared["PyTorch compiled"] = (time.perf_counter() - start, None)
    times = _interleaved(contenders, images, runs)
    eager = statistics.median(times["PyTorch eager"])
    return [
        {
            "runtime": name,
            "ms": statistics.median(values),
            "spread_ms": max(values) - min(values),
            "ratio": statistics.median(values) / eager,
            "prepare_s": prepared[name][0],
            "mb": prepared[name][1],
        }
        for name, values in times.items()
    ]


def _on_one(run: Callable[[Tensor], Any], image: Tensor) -> Any:
    return run(image[None].float())


@torch.inference_mode()
def _interleaved(
    contenders: dict[str, Callable[[Tensor], Any]], images: Sequence[Tensor], runs: int
) -> dict[str, list[float]]:
    """Milliseconds of every run of each, the runs of one between those of the others."""
    for run in contenders.values():
        run(images[0])
        run(images[0])
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(runs):
        for image in images:
            for name, run in contenders.items():
                times[name].append(timed(partial(run, image))[1])
    return times
