"""Checkpoints that load whole or not at all."""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from safetensors.torch import load_file

_SHOWN = 5  # keys named in an error, per kind of mismatch


def _listing(title: str, entries: Sequence[str]) -> list[str]:
    if not entries:
        return []
    more = f", ... {len(entries) - _SHOWN} more" if len(entries) > _SHOWN else ""
    return [f"{len(entries)} {title}: {', '.join(entries[:_SHOWN])}{more}"]


class Checkpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, strict: a checkpoint that does not fit the model is an error.

    Reads `.pth` (tensors and plain containers only) and `.safetensors`. Weights for a single
    branch go through `piip.pretrained`, published detectors through `piip.official`.
    """

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load the model, and what else was saved with it.

        Args:
            path: a file or anything iopath resolves; empty to load nothing.
            checkpointables: names of the other objects to load; None for all.

        Returns:
            What the checkpoint holds beyond those.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is no checkpoint, or one of another architecture; names keys and shapes.
        """
        if path and "://" not in path and not os.path.isfile(path):
            raise FileNotFoundError(f"checkpoint {path} does not exist: check the path")
        loaded: dict[str, Any] = super().load(path, checkpointables)
        return loaded

    def save(self, name: str, **kwargs: Any) -> None:
        """Write `name`.pth, unless the weights have diverged: the checkpoint before stays the last one then.

        Raises:
            FloatingPointError: a parameter is infinite or NaN.
        """
        for key, parameter in self.model.named_parameters():
            if not torch.isfinite(parameter).all():
                raise FloatingPointError(
                    f"checkpoint {name} not written: parameter {key} is infinite or NaN; "
                    f"the last good checkpoint is {self.get_checkpoint_file() or 'none'}"
                )
        super().save(name, **kwargs)

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".safetensors"):
            return {"model": load_file(filename)}
        if filename.endswith(".pkl"):
            raise ValueError(
                f"checkpoint {filename} is a pickle, which can run code: convert it to .safetensors"
            )
        loaded: dict[str, Any] = super()._load_file(filename)
        if not isinstance(loaded["model"], dict):
            raise ValueError(f"checkpoint {filename} holds no state dict under 'model': is it a checkpoint?")
        return loaded

    def _torch_load(self, filename: str) -> Any:
        try:
            return torch.load(filename, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"checkpoint {filename} cannot be read: it is none, or holds more than tensors and numbers"
            ) from error
        except (
            EOFError,
            LookupError,
            RuntimeError,
            ValueError,
        ) as error:  # what torch.load raises on broken files
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ValueError(f"checkpoint {filename} cannot be read: {reason}") from error

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        weights = checkpoint["model"]
        model = self.model.state_dict()
        mismatches = [
            *_listing("keys missing", [key for key in model if key not in weights]),
            *_listing("keys unknown", [key for key in weights if key not in model]),
            *_listing(
                "shapes differ",
                [
                    f"{key} {tuple(weights[key].shape)} in the checkpoint, {tuple(model[key].shape)} here"
                    for key in model
                    if key in weights and weights[key].shape != model[key].shape
                ],
            ),
        ]
        if mismatches:
            raise ValueError(
                f"checkpoint does not fit the model ({'; '.join(mismatches)}): give its own config"
            )
        return super()._load_model(checkpoint)
