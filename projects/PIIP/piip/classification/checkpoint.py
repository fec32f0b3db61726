"""Checkpoints of classifiers: the engine's, with averages and the files of earlier versions."""

from __future__ import annotations

from typing import Any

from ..engine.checkpoints.checkpoint import METADATA, Checkpointer
from ..weights.files.download import local_path
from ..weights.files.state_dict import state_dict_of

__all__ = ["CLASSES", "ClassifierCheckpointer"]

CLASSES = "classes"
"""Key of the metadata for the names of the classes, which earlier versions kept beside the weights."""


class ClassifierCheckpointer(Checkpointer):
    """:class:`piip.engine.checkpoints.checkpoint.Checkpointer` for classifiers.

    Attributes:
        averaged: load the moving average that training kept beside the weights, in their place.
    """

    averaged = False

    def num_classes(self, path: str) -> int:
        """Number of classes that the weights of a file tell apart.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it cannot be read, or the weights are no classifier's.
        """
        weights = self._load_file(str(local_path(path)))["model"]
        for key in ("head.head.bias", "head.heads.0.bias"):
            if key in weights:
                return len(weights[key])
        raise ValueError(f"{path} holds no classifier: it has neither head.head.bias nor head.heads.0.bias")

    def _load_file(self, filename: str) -> dict[str, Any]:
        loaded = super()._load_file(filename)
        names = loaded.pop(CLASSES, None)
        if METADATA not in loaded and isinstance(names, list | tuple):
            loaded[METADATA] = {CLASSES: list(names)}
        if self.averaged:
            if "ema" not in loaded:
                raise ValueError(f"{filename} holds no averaged weights: it was trained without train.ema")
            loaded["model"] = state_dict_of(loaded["ema"], filename)
        return loaded
