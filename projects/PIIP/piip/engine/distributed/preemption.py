"""A scheduler's SIGTERM: finish the step, save, and leave with a status that means "run me again"."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from detectron2.engine.train_loop import HookBase

from .collectives import any_rank

__all__ = ["EXIT_STATUS", "Preempted", "Preemption", "leave_if_told", "passed_on", "watch"]

EXIT_STATUS = os.EX_TEMPFAIL
"""75: what the run was asked for is not done, and the same command line with --resume goes on with it."""

_told = threading.Event()  # signals are the whole process's


class Preempted(SystemExit):
    """SIGTERM was received, and the run is between two steps; uncaught, it ends the process with 75."""

    def __init__(self) -> None:
        super().__init__(EXIT_STATUS)


def leave_if_told() -> None:
    """Raise `Preempted` where this process was told to stop; for work that may be left undone."""
    if _told.is_set():
        raise Preempted


@contextmanager
def watch() -> Iterator[None]:
    """Note SIGTERM in place of dying of it; outside the main thread, which alone takes signals, nothing."""

    def note(number: int, frame: FrameType | None) -> None:
        _told.set()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _told.clear()


@contextmanager
def passed_on() -> Iterator[None]:
    """Pass SIGTERM on to the processes that this one starts, for one that only waits for them."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        for child in multiprocessing.active_children():
            child.terminate()

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Preemption(HookBase):
    """Ends training after the step in which any of the processes was told to stop, in all of them.

    It belongs after the hooks that complete a step, such as the schedule's.
    """

    def after_step(self) -> None:
        """Raises `Preempted` where it is time."""
        if any_rank(_told.is_set()):  # some hear of it a step later than others
            raise Preempted
