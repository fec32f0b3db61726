"""Processes that load data."""

from __future__ import annotations

import signal
import sys
from types import TracebackType

__all__ = ["leave_the_end_to_training"]


def leave_the_end_to_training(worker: int) -> None:
    """Ctrl-C reaches the whole process group: only the training process should answer it.

    When that ends, a worker may be handing over a batch; that nobody takes it is no news then.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    report = sys.excepthook

    def unless_abandoned(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        if not issubclass(kind, ConnectionError):
            report(kind, error, trace)

    sys.excepthook = unless_abandoned
