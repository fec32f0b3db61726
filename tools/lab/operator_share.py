"""What the compiled attention operator is worth end to end: a whole PIIP with it and with its reference."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from piip import cross_attention
from piip.backbone import PIIP
from piip.measure.cost import find_trunk, load_detector
from piip_ops import deform_cross_attn_reference

from .onednn import use_onednn_linear

__all__ = ["compare_operators"]


@contextmanager
def _reference_operator() -> Iterator[None]:
    operator = cross_attention.deform_cross_attn
    cross_attention.deform_cross_attn = deform_cross_attn_reference
    try:
        yield
    finally:
        cross_attention.deform_cross_attn = operator


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare_operators(config_file: str, *, batch: int = 1, runs: int = 3) -> list[dict[str, Any]]:
    """Time a config's PIIP on the CPU, forward and as a training step, with either form of the operator.

    Runs with and without it take turns, after a run of each that does not count. The input is a square of the
    largest image size; linear layers run in oneDNN. A training step is forward and backward, up to the merged
    map: the optimizer's share does not depend on the operator.

    Args:
        config_file: LazyConfig of a detector with a PIIP.
        batch: images in a run.
        runs: timed runs, whose median counts.

    Returns:
        A dict each for "forward" and "training step": "what", "reference_ms", "operator_ms" (medians) and
        "saved_percent".

    Raises:
        ValueError: the config's detector has no PIIP.
    """
    torch.manual_seed(0)
    detector: Any = load_detector(config_file)
    _, piip = find_trunk(detector.backbone)
    if not isinstance(piip, PIIP):
        raise ValueError(f"{config_file} has no PIIP: give the config of a detector with one")
    use_onednn_linear(piip)
    image = torch.randn(batch, 3, *(max(piip.image_sizes),) * 2)

    def forward() -> Tensor:
        with torch.inference_mode():
            return piip.eval()(image)

    def step() -> None:
        piip.train()(image).mean().backward()
        piip.zero_grad()

    rows = []
    for what, call in (("forward", forward), ("training step", step)):
        times: dict[str, list[float]] = {"reference_ms": [], "operator_ms": []}
        for _ in range(runs + 1):
            for key, form in (("reference_ms", _reference_operator), ("operator_ms", nullcontext)):
                with form():
                    times[key].append(1e3 * _seconds(call))
        row: dict[str, Any] = {"what": what, **{key: statistics.median(t[1:]) for key, t in times.items()}}
        row["saved_percent"] = 100 * (1 - row["operator_ms"] / row["reference_ms"])
        rows.append(row)
    return rows
