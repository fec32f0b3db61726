"""The log of a run: on the screen, and in log.txt of its output folder."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.logger import setup_logger

import piip_ops

from ...weights.files.atomic import atomic

__all__ = ["set_up_logs"]

_LOGGERS = ("fvcore", "detectron2")


def set_up_logs(folder: str = "") -> None:
    """Let Detectron2 and this project log to standard output, in colours where that is a terminal.

    Args:
        folder: for log.txt, which never has colours, and environment.txt; "" for neither. All processes write
            a log.txt, the first to the screen, too.
    """
    if folder and comm.is_main_process():
        _write_environment(folder)
    for name in _LOGGERS:
        colours = sys.stdout.isatty()
        setup_logger(folder or None, distributed_rank=comm.get_rank(), color=colours, name=name)
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
                handler.handleError = _Quiet(handler)  # type: ignore[method-assign]


class _Quiet:
    """Ends a handler whose reader has gone, as `head` goes: log.txt has all."""

    def __init__(self, handler: logging.Handler) -> None:
        self.handler, self.report = handler, handler.handleError

    def __call__(self, record: logging.LogRecord) -> None:
        if isinstance(sys.exc_info()[1], BrokenPipeError):
            self.handler.setLevel(logging.CRITICAL + 1)
        else:
            self.report(record)


def _write_environment(folder: str) -> None:
    """Write what the report of a fault needs, versions and machine, into environment.txt of a folder."""
    operator = ", ".join(f"{key}: {value}" for key, value in piip_ops.build_info().items())
    Path(folder).mkdir(parents=True, exist_ok=True)
    text = f"command line: {' '.join(sys.argv)}\nattention operator: {operator}\n{collect_env_info()}\n"
    with atomic(Path(folder, "environment.txt")) as file:
        file.write(text.encode())
