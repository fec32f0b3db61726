"""Processes that load data."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from types import TracebackType

__all__ = ["end_with_training", "ignore_sigint", "start_worker"]


def start_worker(worker: int) -> None:
    """What a worker does first (`worker_init_fn` of a `DataLoader`)."""
    ignore_sigint()
    end_with_training()


def end_with_training() -> None:
    """End this process as soon as the training process ends, by SIGKILL too.

    PyTorch's workers look at the parent process, which is the fork server: it lives as long as they do.
    """
    training = multiprocessing.parent_process()

    def wait() -> None:
        assert training is not None
        training.join()
        os._exit(1)

    if training is not None:
        threading.Thread(target=wait, name="end-with-training", daemon=True).start()


def ignore_sigint() -> None:
    """Ctrl-C reaches the whole process group: only the training process should answer it.

    When that ends, a worker may be sending a batch; that nobody receives it is no error then.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    report = sys.excepthook

    def unless_abandoned(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        if not issubclass(kind, ConnectionError):
            report(kind, error, trace)

    sys.excepthook = unless_abandoned
