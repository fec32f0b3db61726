"""Finds the state dict in what a file of weights holds: containers, prefixes of wrappers, averages."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["MAX_ENTRIES", "state_dict_of"]

_logger = logging.getLogger(__name__)

MAX_ENTRIES = 100_000
"""Tensors that a file may hold; the largest published detector has 3000."""

_AVERAGES = ("model_ema", "state_dict_ema", "ema_model", "params_ema")  # of timm, DINO, BasicSR
_WEIGHTS = ("state_dict", "model_state_dict", "model_state", "model", "module", "params")
# "ema_state_dict" of mmengine holds what was trained: it stores the average under "state_dict". "ema" of our
# own trainings is taken where it is asked for
_LAST = ("ema_state_dict", "ema")
_MAX_DEPTH = 8
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_LIGHTNING = "model."


def _unwrapped(state: Mapping[str, Any], lightning: bool, origin: object) -> dict[str, Any]:
    """Names without those of wrappers: data parallelism, torch.compile, FSDP, Lightning's module."""
    names = {key: ".".join(part for part in key.split(".") if part not in _WRAPPERS) for key in state}
    names = {key: name for key, name in names.items() if name != "n_averaged"}  # a counter of AveragedModel
    while lightning and names and all(name.startswith(_LIGHTNING) for name in names.values()):
        names = {key: name.removeprefix(_LIGHTNING) for key, name in names.items()}
    unwrapped = {name: state[key] for key, name in names.items()}
    if len(unwrapped) < len(names):
        twice = next(name for name in unwrapped if list(names.values()).count(name) > 1)
        raise ValueError(f"{origin} holds {twice} twice, once in a wrapper: expected one model")
    return unwrapped


def state_dict_of(content: Any, origin: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The state dict in the content of a file, without the names of containers and wrappers.

    Containers are ``state_dict``, ``model``, ``model_state``, ``module`` (DeepSpeed) and the like, nested in
    any way; wrappers are ``module.``, ``_orig_mod.`` and those of FSDP anywhere in a name, and Lightning's
    ``model.`` before all names of a ``state_dict``. Of an average (``model_ema``, ``state_dict_ema``,
    ``ema_model``, ``params_ema``) beside the trained weights the average is taken, as timm does, and a
    warning says so.

    Args:
        content: what :func:`.tensors.read_file` returned.
        origin: the file, for errors.

    Raises:
        ValueError: there is no state dict, or one with anything but sound tensors.
    """
    containers: list[str] = []
    for _ in range(_MAX_DEPTH):
        if not isinstance(content, Mapping):
            break
        names = [name for name in (*_AVERAGES, *_WEIGHTS, *_LAST) if isinstance(content.get(name), Mapping)]
        names = [name for name in names if content[name]]
        if not names:
            break
        if names[0] in _AVERAGES and len(names) > 1:
            _logger.warning(
                f"{origin}: '{names[0]}', the average of the weights, is loaded, '{names[1]}' is not"
            )
        containers.append(names[0])
        content = content[names[0]]
    if not isinstance(content, Mapping) or not content:
        found = "none" if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(f"{origin} holds no state dict: expected tensors by name, got {found}")
    if len(content) > MAX_ENTRIES:
        raise ValueError(
            f"{origin} holds {len(content)} tensors, expected at most {MAX_ENTRIES}: is it a model?"
        )
    for key, value in content.items():
        _check(key, value, origin)
    return _unwrapped(content, "state_dict" in containers, origin)


def _check(key: Any, value: Any, origin: object) -> None:
    """Refuse an entry that is no named tensor with memory of its own."""
    if not isinstance(key, str) or not key.isprintable():
        raise ValueError(f"{origin}: key {key!r} is no name, expected tensors by name only")
    if not isinstance(value, Tensor):
        raise ValueError(
            f"{origin}: entry {key!r} is a {type(value).__name__}, expected tensors by name only"
        )
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        kind = "meta" if value.is_meta else "quantised" if value.is_quantized else str(value.layout)
        raise ValueError(f"{origin}: tensor {key} is {kind}: expected a dense tensor with values")
    size = value.untyped_storage().nbytes()
    if value.numel() * value.element_size() > size:
        raise ValueError(
            f"{origin}: tensor {key} claims shape {tuple(value.shape)} but holds only {size} bytes: the file "
            "is damaged, or made to fill the memory"
        )
