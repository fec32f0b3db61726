"""Files that appear whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["remove_parts", "whole_file"]

_PART = ".part"


class _Part:
    """A file being written that remembers why the disk refused.

    PyTorch's archive writer answers a failed write with an internal error that does not say so.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.file = path, path.open("wb")
        self.refusal: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.refusal = error
            raise

    def flush(self) -> None:
        self.file.flush()


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Any]:
    """Open a file for writing bytes; it takes its place under `path` once it is whole and on the disk.

    It is written aside, in the same folder, synchronised and renamed; then the folder is synchronised, too.
    So neither a full disk, nor a killed process, nor a power cut leaves half a file under `path`: what was
    there before stays until the new file replaces it.

    Args:
        path: where it goes; the folder must exist.

    Yields:
        An object with `write(bytes)`, `flush()`, and the `path` of the file aside.

    Raises:
        OSError: the disk takes no more; what was there before is as it was.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}{_PART}")
    target = _Part(part)
    try:
        try:
            yield target
            target.flush()
            os.fsync(target.file.fileno())
        finally:
            target.file.close()
        part.replace(path)
        _synchronise_folder(path.parent)
    except (OSError, RuntimeError) as error:
        refusal = target.refusal or (error if isinstance(error, OSError) else None)
        if refusal is None:
            raise
        free = shutil.disk_usage(path.parent).free / 2**20
        raise OSError(
            f"{path} was not written ({refusal.strerror or refusal}; {free:.0f} MiB are free there): "
            "what was there before is as it was; make room on that disk"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def _synchronise_folder(folder: Path) -> None:
    """Put the folder's list of names on the disk: a rename is only there for good once that is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_parts(folder: str | os.PathLike[str]) -> list[Path]:
    """Remove what killed processes left half written in a folder; nobody may be writing there.

    Returns:
        The files removed.
    """
    parts = sorted(Path(folder).glob(f".*{_PART}"))
    for part in parts:
        part.unlink(missing_ok=True)
    return parts
