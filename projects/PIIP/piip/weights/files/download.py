"""Fetches public files once, whole, into the cache that Detectron2 and fvcore use."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from urllib.error import URLError
from urllib.parse import unquote

from iopath.common.file_io import HTTPURLHandler, PathManager

__all__ = ["is_remote", "is_url", "local_path"]

_FILE = "file://"
_SHA256_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.\w+$")  # the convention of torch.hub


def is_url(source: str) -> bool:
    """Whether a source names a file on the web."""
    return source.startswith(("http://", "https://"))


def is_remote(source: str) -> bool:
    """Whether a source names a file by any scheme but ``file://``."""
    return "://" in source and not source.startswith(_FILE)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _path_manager() -> PathManager:
    manager = PathManager()
    manager.register_handler(HTTPURLHandler())
    return manager


def local_path(source: str, *, min_size: int = 0) -> Path:
    """The local copy of a file, downloaded where ``source`` is a URL.

    A download takes its place in the cache (``$FVCORE_CACHE``, by default ``~/.torch/iopath_cache``) only
    when as many bytes have arrived as the server announced. A name such as ``model-a1311bcf.pth`` promises
    the beginning of the file's SHA-256, which is checked.

    Args:
        source: a path or a URL, ``file://`` or ``http(s)://``.
        min_size: bytes that the file must have at least.

    Raises:
        FileNotFoundError: there is no such file.
        ConnectionError: the download failed or came to an early end; nothing is kept of it.
        ValueError: the file is not the one it should be.
    """
    if not is_url(source):
        path = Path(unquote(source.removeprefix(_FILE)) if source.startswith(_FILE) else source)
        if not path.exists():
            raise FileNotFoundError(f"file of weights {source} does not exist: check the path")
        return path
    try:
        path = Path(_path_manager().get_local_path(source))
    except (URLError, OSError) as error:
        raise ConnectionError(
            f"cannot download {source} ({error}): check the connection, or fetch it by other means and give "
            f"its path"
        ) from error
    size = path.stat().st_size
    if size < min_size:
        raise ValueError(
            f"{path} has {size} bytes, expected at least {min_size}: delete it, it is not {source}"
        )
    if match := _SHA256_IN_NAME.search(path.name):
        digest = _sha256(path)
        if not digest.startswith(match[1]):
            raise ValueError(f"{path} has SHA-256 {digest[:16]}..., its name promises {match[1]}: delete it")
    return path
