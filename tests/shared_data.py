"""Golden numbers of the published code.

The smallest case of every kind, and the names and shapes of all released checkpoints, are in ``tests/data``.
More cases may lie in ``shared/``, beside the checkout; tests of those skip where that folder is absent.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

DATA = Path(__file__).parent / "data"
SHARED = Path(__file__).resolve().parents[2] / "shared"
META = "meta.json"  # the description, in the files of tests/data


def names(folder: str) -> list[str]:
    """Names of all cases of a kind, such as ``fixtures/backbone``."""
    return sorted({file.stem for root in (DATA, SHARED) for file in (root / folder).glob("*.npz")})


@cache
def _key_lists() -> dict[str, dict[str, dict[str, Any]]]:
    return json.loads(lzma.decompress((DATA / "keys.json.xz").read_bytes()))


def key_lists(folder: str) -> list[str]:
    """Names of the released checkpoints whose tensors are listed: of ``keys`` or ``keys_tasks``."""
    return sorted(_key_lists()[folder])


def key_list(folder: str, name: str) -> dict[str, Any]:
    """What is known of a released checkpoint: its configuration, and its tensors with shapes as ``keys``."""
    return deepcopy(_key_lists()[folder][name])


class _Arrays(dict[str, Tensor]):
    def __missing__(self, key: str) -> Tensor:
        pytest.skip(f"needs {key} of a golden case that is kept in shared/, beside the checkout")


@dataclass(frozen=True)
class Golden:
    """One case: its description and its arrays, by name."""

    meta: dict[str, Any]
    arrays: dict[str, Tensor]

    def group(self, prefix: str) -> dict[str, Tensor]:
        """The arrays below ``prefix/``, without it."""
        return {k.removeprefix(f"{prefix}/"): v for k, v in self.arrays.items() if k.startswith(f"{prefix}/")}


def _read(file: Path) -> Iterator[tuple[str, Tensor]]:
    with np.load(file) as arrays:
        for key in arrays.files:
            if key != META:
                yield key, torch.from_numpy(arrays[key])


@cache
def golden(folder: str, name: str) -> Golden:
    """Read one case; skips the calling test where it is neither here nor beside the checkout."""
    here, beside = DATA / folder / f"{name}.npz", SHARED / folder / f"{name}.npz"
    arrays = _Arrays(_read(beside) if beside.is_file() else ())
    if here.is_file():
        arrays.update(_read(here))
        with np.load(here) as file:
            return Golden(json.loads(file[META]), arrays)
    if not beside.is_file():
        pytest.skip(f"needs the golden case {name} in shared/{folder}, beside the checkout")
    return Golden(json.loads(beside.with_suffix(".json").read_text()), arrays)
