"""Reads and writes files of tensors. Reading runs no code and takes no more memory than the file's size."""

from __future__ import annotations

import os
import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from .atomic import atomic
from .state_dict import MAX_ENTRIES, state_dict_of

__all__ = ["read_file", "read_state", "reading", "same_content", "write_file"]

_MAX_EXPANSION = 4  # archives of weights are stored, or compressed to no less than a half
_MAX_REASON = 300  # characters
_FOREIGN = {  # how files begin that hold no weights
    b"version https://git-lfs": "a pointer of Git LFS: run git lfs pull",
    b"\x93NUMPY": "a single NumPy array: expected .npz, arrays by name",
    b"\x89HDF": "an HDF5 file",
    b"GGUF": "a GGUF file",
    b"%PDF": "a PDF",
    b"\x1f\x8b": "compressed by gzip: unpack it",
    b"BZh": "compressed by bzip2: unpack it",
    b"\xfd7zXZ": "compressed by xz: unpack it",
    b"\x28\xb5\x2f\xfd": "compressed by Zstandard: unpack it",
    b"7z\xbc\xaf": "a 7z archive: unpack it",
}


def _format(path: Path) -> str:
    """ "zip", "safetensors" or "pickle", by how a file begins, whatever its suffix.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is none of these.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder: expected a file of weights")
    if not path.is_file():
        what = "is no regular file" if path.exists() else "does not exist"
        raise FileNotFoundError(f"file of weights {path} {what}: check the path")
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(b"PK\x03\x04"):  # which an archive that was cut off does, too
        return "zip"
    if head[8:9] == b"{":
        return "safetensors"
    if head.startswith(b"\x80"):
        return "pickle"
    what = next((what for magic, what in _FOREIGN.items() if head.startswith(magic)), "of no known format")
    if not head:
        what = "empty: fetch it again"
    elif head[257:262] == b"ustar":
        what = "a tar archive: unpack it"
    elif head.lstrip().startswith(b"<"):
        what = "a web page: the address it came from is not that of the file"
    elif what == "of no known format" and head.isascii():
        what = "a text"
    raise ValueError(f"{path} cannot be read: it is {what}; expected .pth of PyTorch, .safetensors or .npz")


@contextmanager
def reading(path: object) -> Iterator[None]:
    """Turn what parsers raise on damaged bytes, which may be anything, into a `ValueError` of one line."""
    try:
        with warnings.catch_warnings():  # PyTorch's own, of formats that it may not know
            warnings.simplefilter("ignore")
            yield
    except OSError as error:
        if error.filename is not None:  # of opening the file, not of what a parser looks for in it
            raise
        raise ValueError(f"{path} cannot be read: it is cut off or damaged ({error})") from error
    except pickle.UnpicklingError as error:
        reason = next((line for line in str(error).splitlines() if "GLOBAL" in line or "class" in line), "")
        raise ValueError(
            f"{path} cannot be read: it is cut off, or holds more than tensors and plain containers, which "
            f"could run code; torch.load must take it with weights_only=True. {reason[:_MAX_REASON]}".rstrip()
        ) from error
    except Exception as error:
        reason = " ".join(str(error).split())[:_MAX_REASON] or type(error).__name__
        raise ValueError(f"{path} cannot be read: it is cut off or damaged ({reason})") from error


def _check_archive(path: Path) -> bool:
    """Whether an archive holds NumPy arrays. One that unpacks to far more than its own size is refused."""
    with reading(path), zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    unpacked, size = sum(entry.file_size for entry in entries), path.stat().st_size
    if len(entries) > MAX_ENTRIES or unpacked > _MAX_EXPANSION * size:
        raise ValueError(
            f"{path} cannot be read: its {size} bytes hold {len(entries)} entries of {unpacked} bytes in "
            f"all, expected at most {MAX_ENTRIES} entries and {_MAX_EXPANSION} times the size of the file"
        )
    arrays = [entry.filename.endswith(".npy") for entry in entries]
    if not any(arrays) and not any(entry.filename.endswith("data.pkl") for entry in entries):
        raise ValueError(
            f"{path} cannot be read: it is an archive without tensors; expected .pth of PyTorch or .npz"
        )
    return all(arrays)


def read_file(path: str | os.PathLike[str], *, mmap: bool = False) -> Any:
    """The content of a file of weights: of safetensors and NumPy tensors by name, else what was saved.

    Args:
        path: ``.pth``, ``.safetensors`` or ``.npz``; the content decides, not the suffix.
        mmap: map tensors of a ``.pth`` into memory rather than read them, if its format allows.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, of another format, or holds anything but tensors and plain containers.
    """
    path = Path(path)
    kind = _format(path)
    is_numpy = kind == "zip" and _check_archive(path)
    with reading(path):
        if kind == "safetensors":
            return load_file(path)
        if is_numpy:
            with np.load(path, allow_pickle=False) as arrays:
                return {key: torch.from_numpy(arrays[key]) for key in arrays.files}
        if path.suffix == ".safetensors":  # which PyTorch takes for one
            with path.open("rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and kind == "zip")


def read_header(path: str | os.PathLike[str]) -> dict[str, str]:
    """The texts beside the tensors of a safetensors file; none of a file of another format."""
    path = Path(path)
    if _format(path) != "safetensors":
        return {}
    with reading(path), safe_open(path, "pt") as file:
        texts: dict[str, str] = file.metadata() or {}
    return texts


def read_state(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """:func:`.state_dict.state_dict_of` a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or holds no sound state dict.
    """
    return state_dict_of(read_file(path), path)


def same_content(a: object, b: object) -> bool:
    """Whether two nested contents are equal, tensors bit for bit."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same_content(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(same_content, a, b))
    return a == b


def _without_sharing(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that share no memory, which safetensors does not store."""
    seen: set[int] = set()
    alone = {}
    for key, tensor in state.items():
        memory = tensor.untyped_storage().data_ptr()
        alone[key] = tensor.clone() if memory in seen else tensor.contiguous()
        seen.add(memory)
    return alone


def write_file(
    content: Mapping[str, Any], path: str | os.PathLike[str], header: dict[str, str] | None = None
) -> None:
    """Save a dict atomically (see :func:`.atomic.atomic`).

    Args:
        content: tensors by name; for any other suffix than ``.safetensors`` anything torch.save takes.
        path: ``.safetensors`` or ``.pth``.
        header: texts to keep beside the tensors of a ``.safetensors``.

    Raises:
        OSError: the disk is full or refuses; the old file is unchanged.
    """
    with atomic(path) as file:
        if Path(path).suffix == ".safetensors":
            try:
                save_file(_without_sharing(content), file.path, header)
            except SafetensorError as error:
                raise OSError(str(error)) from error
        else:
            torch.save(dict(content), file)
