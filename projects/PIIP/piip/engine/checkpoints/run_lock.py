"""One training a folder: a second one there is refused, and one that was killed is in nobody's way."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["run_lock"]

_NAME = ".run.lock"
_held: set[int] = set()  # descriptors of this process's locks


def _let_go_in_child() -> None:
    """A forked child has copies of its parent's descriptors: it would keep the lock when its parent dies."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_let_go_in_child)


@contextmanager
def run_lock(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Hold an output folder while training in it; made if missing.

    The lock is the operating system's (`flock`) and ends with the process that holds it, however that ends.
    Network file systems carry it between machines where their locks are on, as NFS does since Linux 2.6.12.

    Args:
        folder: `train.output_dir`.

    Raises:
        BlockingIOError: another process trains there; the message says which, where and since when.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _NAME
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = path.read_text().strip() or "unknown"
            raise BlockingIOError(
                f"another run trains in {folder} ({holder}): give this one its own train.output_dir, "
                "or end that one"
            ) from error
        _held.add(descriptor)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        os.truncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {since}\n".encode())
        yield
    finally:
        _held.discard(descriptor)
        os.close(descriptor)
