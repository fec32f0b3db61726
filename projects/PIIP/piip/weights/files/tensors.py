"""Reads files of weights without trusting them: tensors and plain containers, nothing that runs code."""

from __future__ import annotations

import math
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .atomic import atomic

__all__ = ["check_values", "read_file", "read_state", "same_content", "state_dict_of", "unwrap", "write_file"]

_CONTAINERS = ("state_dict", "model_state", "model", "module")
_MAX_ENTRIES = 100_000  # the largest published detector has 3000
_MAX_EXPANSION = 4  # archives of weights are stored, or compressed to no less than a half


def _is_zip(path: Path) -> bool:
    """Whether a file begins as an archive does, which one that was cut off still does."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _check_archive(path: Path) -> None:
    """Refuse an archive that is cut off, or that would unpack to far more than its own size."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} cannot be read: it is cut off or damaged ({error})") from error
    unpacked, size = sum(entry.file_size for entry in entries), path.stat().st_size
    if len(entries) > _MAX_ENTRIES or unpacked > _MAX_EXPANSION * size:
        raise ValueError(
            f"{path} cannot be read: its {size} bytes hold {len(entries)} entries of {unpacked} bytes in "
            f"all, expected at most {_MAX_ENTRIES} entries and {_MAX_EXPANSION} times the size of the file"
        )


def _read_torch(path: Path, mmap: bool) -> Any:
    if _is_zip(path):
        _check_archive(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and _is_zip(path))
    except pickle.UnpicklingError as error:
        reason = next((line for line in str(error).splitlines() if "GLOBAL" in line or "class" in line), "")
        raise ValueError(
            f"{path} cannot be read: it is cut off, or holds more than tensors and plain containers, which "
            f"could run code; torch.load must take it with weights_only=True. {reason}".rstrip()
        ) from error
    except (EOFError, LookupError, RuntimeError, TypeError, ValueError) as error:  # of damaged files
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} cannot be read: {reason}") from error


def _read_npz(path: Path) -> dict[str, Tensor]:
    _check_archive(path)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    except (EOFError, OSError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as NumPy arrays ({error})") from error


def read_file(path: str | os.PathLike[str], *, mmap: bool = False) -> Any:
    """What a file of weights holds: a dict of tensors for ``.safetensors`` and ``.npz``, else what was saved.

    Args:
        path: the file.
        mmap: leave tensors of a ``.pth`` on disk until they are looked at, where its format can.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or holds anything but tensors and plain containers.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"file of weights {path} does not exist: check the path")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is cut off or no safetensors file ({error}): fetch it again") from error
    return _read_npz(path) if path.suffix == ".npz" else _read_torch(path, mmap)


def unwrap(content: Any) -> Any:
    """The state dict in the usual containers, at most two deep, without data parallelism's prefix."""
    for _ in range(2):
        if isinstance(content, Mapping):
            inner = next(
                (content[name] for name in _CONTAINERS if isinstance(content.get(name), Mapping)), None
            )
            content = content if inner is None else inner
    if isinstance(content, Mapping) and content and all(str(key).startswith("module.") for key in content):
        content = {key.removeprefix("module."): value for key, value in content.items()}
    return content


def state_dict_of(content: Any, path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a state dict, by name, from what a file of any common layout holds.

    Unwraps ``state_dict``, ``model`` and ``module`` (DeepSpeed) and removes the prefix ``module.``.

    Args:
        content: what :func:`read_file` returned.
        path: of the file, for errors.

    Raises:
        ValueError: there is no state dict, or one with anything but sound tensors.
    """
    content = unwrap(content)
    if not isinstance(content, Mapping) or not content:
        raise ValueError(
            f"{path} holds no state dict: expected tensors by name, got {type(content).__name__}"
        )
    if len(content) > _MAX_ENTRIES:
        raise ValueError(
            f"{path} holds {len(content)} tensors, expected at most {_MAX_ENTRIES}: is it a model?"
        )
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"{path}: entry {key!r} is a {type(value).__name__}, expected tensors by name only"
            )
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError(
                f"{path}: tensor {key} claims shape {tuple(value.shape)} but holds only "
                f"{value.untyped_storage().nbytes()} bytes: the file is damaged, or made to fill the memory"
            )
    return dict(content)


def read_state(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """:func:`state_dict_of` what is in a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or holds no sound state dict.
    """
    return state_dict_of(read_file(path), path)


def check_values(state: Mapping[str, Tensor], origin: object) -> None:
    """Refuse weights that are no finite floating-point numbers.

    Args:
        state: name -> tensor; tensors on the meta device have no values to check.
        origin: what to name in the error, such as the file.

    Raises:
        ValueError: naming the file, the first such tensor and what is in it.
    """
    for key, tensor in state.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{origin}: {key} is of {tensor.dtype}, expected a floating-point type")
    check_finite(state, origin)


def check_finite(state: Mapping[str, Tensor], origin: object) -> None:
    """Refuse weights that are infinite or NaN; counters and tensors on the meta device are left alone.

    Raises:
        ValueError: naming the file and the first such tensor.
    """
    for key, tensor in state.items():
        if not tensor.is_floating_point() or tensor.is_meta:
            continue
        if not math.isfinite(tensor.sum(dtype=torch.float64)):
            raise ValueError(f"{origin}: {key} holds NaN or infinite values: it is not a trained model")


def same_content(a: object, b: object) -> bool:
    """Whether two nested contents are equal, tensors bit for bit."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same_content(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(same_content, a, b))
    return a == b


def write_file(content: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Save a dict to ``path``, whole or not at all (see :func:`atomic`).

    Args:
        content: tensors by name; for any other suffix than ``.safetensors`` anything torch.save takes.
        path: ``.safetensors`` or ``.pth``.

    Raises:
        OSError: the disk takes no more; what was there before is as it was.
    """
    with atomic(path) as file:
        if Path(path).suffix == ".safetensors":
            try:
                save_file({key: tensor.contiguous() for key, tensor in content.items()}, file.path)
            except SafetensorError as error:
                raise OSError(str(error)) from error
        else:
            torch.save(dict(content), file)
