"""What visitors send stays here: no telemetry, and temporary files that only this user reads."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

__all__ = ["no_telemetry", "private_folder"]


def no_telemetry() -> None:
    """Switch off what Gradio and the Hugging Face hub report, which they read when they are imported."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"


def _exit(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)


@contextmanager
def private_folder() -> Iterator[Path]:
    """A folder for all temporary files of this process and of Gradio, removed when the context ends.

    Until then new files are readable by this user alone, and SIGTERM and SIGHUP end the program as an exit
    does, so that the folder is removed. Enter it in the main thread.
    """
    handlers = {number: signal.signal(number, _exit) for number in (signal.SIGTERM, signal.SIGHUP)}
    mask, before = os.umask(0o077), tempfile.tempdir
    try:
        with tempfile.TemporaryDirectory(prefix="piip-page-", ignore_cleanup_errors=True) as folder:
            tempfile.tempdir = os.environ["GRADIO_TEMP_DIR"] = folder
            yield Path(folder)
    finally:
        os.environ.pop("GRADIO_TEMP_DIR", None)
        tempfile.tempdir = before
        os.umask(mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
