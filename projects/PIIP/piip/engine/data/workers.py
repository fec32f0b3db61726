"""Processes that load batches ahead of training, and what happens when one of them dies."""

from __future__ import annotations

import logging
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

import cv2
from torch.utils.data import DataLoader

from ... import workers

__all__ = ["START_METHOD", "DataError", "preload", "reason_of", "restart_on_worker_death", "start_worker"]

_logger = logging.getLogger("detectron2.piip")

START_METHOD = "forkserver"
"""How workers start: from a process without the threads, locks and GPU that a fork of the trainer has."""

_DEATHS = 3  # give up after three in a row over one batch
_GRACE = 3.0  # seconds that the news of a death may take on a busy machine


class DataError(ValueError):
    """There is no next batch, of training or evaluation; the model is as the last step left it."""


def reason_of(error: Exception) -> str:
    """The message of an error, without the traceback that one of a worker carries."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def preload(*modules: str) -> None:
    """Let workers start with these modules imported, in milliseconds in place of seconds.

    Without effect once the first worker was started.
    """
    multiprocessing.get_context(START_METHOD).set_forkserver_preload(list(modules))


def start_worker(worker: int) -> None:
    """What a worker does first (`worker_init_fn` of a `DataLoader`)."""
    workers.start_worker(worker)
    cv2.setNumThreads(1)  # by itself, each of the workers would start a thread a core


def restart_on_worker_death(
    load: Callable[[int, bool], DataLoader[Any]],
    start: int,
    images_of: Callable[[int], list[str]],
    ahead: int,
) -> Iterator[Any]:
    """Batches from number `start` on; when a worker dies, new workers continue at the batch that is due.

    The batch a worker died of may be any of those that were being read ahead, and with it go those it had
    ready: so they are then loaded one by one, and the next death is that of the batch that is due.

    Args:
        load: a loader that begins with the batch of the number given and, where the flag is set, reads
            nothing ahead of it. A batch must depend on its number only.
        start: number of the first batch.
        images_of: what to name where a batch cannot be loaded.
        ahead: batches that a loader without the flag has in work at a time.

    Raises:
        DataError: workers died three times in a row over the same batch.
    """
    number, deaths, suspected = start, 0, start
    while True:
        batches = iter(load(number, number < suspected))
        workers: list[BaseProcess] = getattr(batches, "_workers", [])
        try:
            for batch in batches:
                yield batch
                number, deaths = number + 1, 0
                if number == suspected:  # read ahead again
                    break
            else:
                return
        except Exception as error:
            dead = _dead(workers)
            if not dead:
                raise
            deaths, suspected = deaths + 1, number + ahead
            if deaths == _DEATHS:
                raise DataError(
                    f"data workers died {_DEATHS} times in a row over batch {number} ({dead}), which are the "
                    f"images {', '.join(images_of(number))}: look at them, and at the memory that is left "
                    "(fewer dataloader.train.num_workers take less)"
                ) from error
            _logger.warning(
                f"{dead}: loading goes on with new workers at batch {number}, nothing is left out"
            )


def _dead(workers: list[BaseProcess]) -> str:
    """Names and ends of the workers that are no more; empty where all live."""
    ended = wait([worker.sentinel for worker in workers], timeout=_GRACE)
    for worker in workers:
        if worker.sentinel in ended:
            worker.join(_GRACE)  # its files are closed a moment before it is gone
    return ", ".join(
        f"data worker {number} (process {worker.pid}) {_end(worker.exitcode)}"
        for number, worker in enumerate(workers)
        if not worker.is_alive()
    )


def _end(exitcode: int | None) -> str:
    if exitcode is None or exitcode >= 0:
        return f"ended with status {exitcode}"
    name = signal.Signals(-exitcode).name
    memory = ", as the kernel does where memory runs out" if -exitcode == signal.SIGKILL else ""
    return f"was killed by {name}{memory}"
