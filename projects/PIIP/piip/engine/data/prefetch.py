"""Items are made, and batches go to the GPU, before they are asked for."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any, TypeVar

import torch
from detectron2.structures import Instances
from torch import Tensor

__all__ = ["prefetch", "prefetch_to_device", "to_device"]

Item = TypeVar("Item")

_AHEAD = 2  # batches on the device beyond the one in use
_PATIENCE = 10  # seconds for a thread to end


def to_device(value: Any, device: torch.device) -> Any:
    """A batch, or a part of one, with its tensors on a device; copies from pinned memory do not block.

    Args:
        value: tensors and Detectron2's `Instances` in lists and dicts; what else there is stays as it is.
        device: where to.
    """
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Instances):
        return value.to(device)
    if isinstance(value, dict):
        return {key: to_device(item, device) for key, item in value.items()}
    if isinstance(value, list):
        return [to_device(item, device) for item in value]
    return value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Instances):
        yield from _tensors(list(value.get_fields().values()))
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)
    else:  # boxes, masks, keypoints
        yield from _tensors(getattr(value, "tensor", []))


def prefetch(items: Iterable[Item], depth: int = 4) -> Generator[Item, None, None]:
    """The same items, made in a thread that is up to ``depth`` of them ahead.

    An error arrives in its place. Closed early, the thread ends with the item that it is making.
    """
    ready: queue.Queue[Sequence[Item] | BaseException] = queue.Queue(depth)
    stop = threading.Event()

    def put(what: Sequence[Item] | BaseException) -> None:
        while not stop.is_set():
            try:
                ready.put(what, timeout=0.1)
                return
            except queue.Full:
                continue

    def fill() -> None:
        try:
            for item in items:
                put([item])
                if stop.is_set():
                    return
            put([])
        except BaseException as error:  # noqa: BLE001, raised again where the items are taken
            put(error)

    thread = threading.Thread(target=fill, name="reading", daemon=True)
    thread.start()
    try:
        while True:
            what = ready.get()
            if isinstance(what, BaseException):
                raise what
            if not what:
                return
            yield from what
    finally:
        stop.set()
        thread.join(_PATIENCE)  # it may be waiting for the next item


def prefetch_to_device(batches: Iterable[Any], device: torch.device) -> Iterator[Any]:
    """Batches on a GPU, copied there by a thread, on a stream of its own, before they are asked for.

    Args:
        batches: on the CPU, best in pinned memory. Only the thread takes from it, and it must not draw from
            this process's random numbers, which the training step uses at the same time.
        device: a GPU.
    """
    stream = torch.cuda.Stream(device)

    def copies() -> Iterator[tuple[Any, torch.cuda.Event]]:
        for batch in batches:
            with torch.cuda.device(device), torch.cuda.stream(stream):
                copied = to_device(batch, device), stream.record_event()
            yield copied

    with closing(prefetch(copies(), _AHEAD)) as ready:
        for batch, copied in ready:
            current = torch.cuda.current_stream(device)
            current.wait_event(copied)
            for tensor in _tensors(batch):
                tensor.record_stream(current)  # its memory is not given away while the step still reads it
            yield batch
