"""Golden numbers that are too large to keep here: they live beside the checkout and tests that need them skip
without.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

SHARED = Path(__file__).resolve().parents[2] / "shared"


def need(folder: str) -> Path:
    """The folder of shared data, or a skip that says what is missing."""
    path = SHARED / folder
    if not path.is_dir():
        pytest.skip(f"needs the golden data in shared/{folder}, beside the checkout")
    return path


def names(folder: str, suffix: str = ".json") -> list[str]:
    """Names of the cases in a folder; empty where it is absent."""
    path = SHARED / folder
    return sorted(file.stem for file in path.glob(f"*{suffix}")) if path.is_dir() else []


@dataclass(frozen=True)
class Golden:
    """One case: its description and its arrays, by name."""

    meta: dict[str, Any]
    arrays: dict[str, Tensor]

    def group(self, prefix: str) -> dict[str, Tensor]:
        """The arrays below ``prefix/``, without it."""
        return {k.removeprefix(f"{prefix}/"): v for k, v in self.arrays.items() if k.startswith(f"{prefix}/")}


@cache
def golden(folder: str, name: str) -> Golden:
    """Read one case."""
    path = need(folder)
    with np.load(path / f"{name}.npz") as arrays:
        tensors = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    return Golden(json.loads((path / f"{name}.json").read_text()), tensors)
