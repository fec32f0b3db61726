"""Weights of classifiers, loaded whole or not at all."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ..engine.checkpoints.checkpoint import METADATA
from ..weights.converters.classifier import CLASSIFIER
from ..weights.differences import check_values, differences
from ..weights.files.download import local_path
from ..weights.files.state_dict import state_dict_of
from ..weights.files.tensors import read_file

__all__ = ["Weights", "load_weights", "num_classes_of", "read_weights"]

CLASSES = "classes"
"""Key of a checkpoint's metadata under which the names of its classes are; once of the checkpoint itself."""

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
    classes = None
    if isinstance(content, dict):
        about = content.get(METADATA)
        classes = (about if isinstance(about, dict) else content).get(CLASSES)
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
