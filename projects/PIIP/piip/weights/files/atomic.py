"""Atomic writes: a file appears complete or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["atomic", "remove_partial"]

PARTIAL = ".part"


class _PartialFile:
    """A file that keeps the OSError of a failed write, which PyTorch's archive writer hides."""

    def __init__(self, path: Path) -> None:
        self.path, self.file = path, path.open("wb")
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Any]:
    """Open a file for writing bytes; it replaces `path` once it is complete.

    The bytes go into a temporary file in the same folder, which is synchronised and renamed; then the folder
    is synchronised. A full disk, a killed process or a power cut leaves the old file under `path`.

    Args:
        path: the file to write; its folder must exist.

    Yields:
        An object with `write(bytes)`, `flush()`, and `path`, that of the temporary file.

    Raises:
        OSError: the disk is full or refuses; the old file is unchanged.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    file = _PartialFile(partial)
    try:
        try:
            yield file
            file.flush()
            os.fsync(file.file.fileno())
        finally:
            file.file.close()
        partial.replace(path)
        _synchronise_folder(path.parent)
    except (OSError, RuntimeError) as error:
        cause = file.error or (error if isinstance(error, OSError) else None)
        if cause is None:
            raise
        free = shutil.disk_usage(path.parent).free / 2**20
        raise OSError(
            f"{path} was not written ({cause.strerror or cause}; {free:.0f} MiB are free there): "
            "the old file is unchanged; free space on that disk"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _synchronise_folder(folder: Path) -> None:
    """Write the folder's entries to the disk: only then does a rename survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_partial(folder: str | os.PathLike[str]) -> list[Path]:
    """Remove the temporary files and folders that killed processes left; nobody may be writing there.

    Returns:
        What was removed.
    """
    left = sorted(Path(folder).glob(f".*{PARTIAL}"))
    for path in left:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return left
