"""Checkpoints of a training, written whole or not at all."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..weights.converters.classifier import CLASSIFIER
from ..weights.differences import check_values, differences
from ..weights.files.download import local_path
from ..weights.files.state_dict import state_dict_of
from ..weights.files.tensors import read_file, write_file

__all__ = ["Folder", "Weights", "load_weights", "num_classes_of", "read_weights"]

CLASSES = "classes"
"""Key of a checkpoint under which the names of its classes are."""

_LAST = "last_checkpoint"
_SHOWN = 5  # keys named in an error, per kind of mismatch


@dataclass(frozen=True)
class Weights:
    """What a file of weights holds.

    Attributes:
        state: tensors under the names of :class:`piip.classification.classifier.PIIPClassifier`.
        classes: names of the classes it was trained on; empty where the file does not tell.
    """

    state: dict[str, Tensor]
    classes: list[str]


def read_weights(path: str, *, averaged: bool = False) -> Weights:
    """Read a classifier's weights from a file of ours or a released one.

    Args:
        path: a path or a URL, ``.pth`` or ``.safetensors``.
        averaged: take the moving average that training kept beside the weights.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or has no average where that is asked for.
    """
    file = local_path(path)
    content = read_file(file)
    classes = content.get(CLASSES) if isinstance(content, dict) else None
    if averaged:
        if not isinstance(content, dict) or "ema" not in content:
            raise ValueError(f"{path} holds no averaged weights: it was trained without train.ema")
        content = content["ema"]
    state = state_dict_of(content, path)
    if CLASSIFIER.is_released(state):
        state = CLASSIFIER.convert(state, path)
    return Weights(state, list(classes) if isinstance(classes, list | tuple) else [])


def num_classes_of(weights: Weights, origin: str) -> int:
    """Number of classes that weights tell apart.

    Raises:
        ValueError: they are no classifier's.
    """
    for key in ("head.head.bias", "head.heads.0.bias"):
        if key in weights.state:
            return len(weights.state[key])
    raise ValueError(f"{origin} holds no classifier: it has neither head.head.bias nor head.heads.0.bias")


def load_weights(model: nn.Module, weights: Weights, origin: str, *, restart_head: bool = False) -> list[str]:
    """Load weights whole or not at all.

    Args:
        model: a classifier.
        weights: what :func:`read_weights` returned.
        origin: where they come from, for errors.
        restart_head: leave the tensors of the head that follow the number of classes as the model has them,
            where the weights have another number.

    Returns:
        Names of the tensors that were left.

    Raises:
        ValueError: naming the tensors that differ, or the first that holds what the model cannot.
    """
    own, state = model.state_dict(), weights.state
    left = [
        key
        for key in own
        if restart_head
        and key.startswith("head.")
        and key in state
        and len(state[key]) != len(own[key])
        and state[key].shape[1:] == own[key].shape[1:]
    ]
    state = {**state, **{key: own[key] for key in left}}
    if problems := differences(state, own, shown=_SHOWN):
        raise ValueError(f"{origin} does not fit the model ({'; '.join(problems)}): give its own config")
    check_values(state, origin, own)
    model.load_state_dict(state)
    return left


class Folder:
    """The checkpoints of one run.

    They are ``model_0001234.pth``, named after the iterations done, and ``model_final.pth``; the file
    ``last_checkpoint`` names the last.

    Args:
        path: the folder, made if missing.
        keep: how many numbered ones to keep, the newest.
    """

    def __init__(self, path: str | Path, keep: int = 2) -> None:
        self.path, self.keep = Path(path), keep

    @property
    def last(self) -> Path | None:
        """The newest checkpoint; None where there is none."""
        pointer = self.path / _LAST
        return self.path / pointer.read_text().strip() if pointer.is_file() else None

    def save(self, name: str, content: Mapping[str, Any]) -> Path:
        """Write a checkpoint, and remove those that are too old.

        Raises:
            FloatingPointError: a weight is infinite or NaN; the checkpoints stay as they are.
        """
        for key, tensor in content["model"].items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise FloatingPointError(
                    f"checkpoint {name} not written: {key} is infinite or NaN; the last good checkpoint is "
                    f"{self.last or 'none'}"
                )
        self.path.mkdir(parents=True, exist_ok=True)
        file = self.path / f"{name}.pth"
        write_file(content, file)
        pointer = self.path / f".{_LAST}.part"
        pointer.write_text(file.name)
        pointer.replace(self.path / _LAST)
        for old in self._numbered()[: -self.keep]:
            old.unlink()
        return file

    def _numbered(self) -> Sequence[Path]:
        return sorted(p for p in self.path.glob("model_*.pth") if re.fullmatch(r"model_\d{7,}", p.stem))
