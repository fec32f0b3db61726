"""Metrics of a run, for people and programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

__all__ = ["MetricsFile"]


class MetricsFile:
    """``metrics.json``, a JSON object a line as Detectron2 writes it, and TensorBoard's events beside it.

    Args:
        folder: where to; lines are added to those that are there.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.json"
        self.events = SummaryWriter(str(folder))

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        """Add what is known after that many iterations."""
        with self.path.open("a") as file:
            file.write(json.dumps({"iteration": iteration, **values}) + "\n")
        for name, value in values.items():
            self.events.add_scalar(name, value, iteration)
        self.events.flush()
