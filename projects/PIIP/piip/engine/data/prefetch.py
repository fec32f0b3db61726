"""The next batches go to the GPU while it computes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.structures import Instances
from torch import Tensor

__all__ = ["Prefetcher", "to_device"]

_AHEAD = 2  # batches on the device beyond the one in use


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


class Prefetcher(Iterator[Any]):
    """Batches on a GPU, copied there by a thread, on a stream of its own, before they are asked for.

    An error in loading comes up where the batch it stands for is asked for.
    """

    def __init__(self, batches: Iterator[Any], device: torch.device) -> None:
        """
        Args:
            batches: on the CPU, best in pinned memory. Only the thread takes from it, and it must not draw
                from this process's random numbers, which the training step uses at the same time.
            device: a GPU.
        """
        self.device = device
        self._stream = torch.cuda.Stream(device)
        self._ready: queue.Queue[tuple[Any, torch.cuda.Event] | BaseException] = queue.Queue(_AHEAD)
        threading.Thread(target=self._run, args=(batches,), name="prefetch", daemon=True).start()

    def _run(self, batches: Iterator[Any]) -> None:
        try:
            with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
                for batch in batches:
                    moved = to_device(batch, self.device)
                    self._ready.put((moved, self._stream.record_event()))
            self._ready.put(StopIteration())
        except BaseException as error:  # noqa: BLE001 - it is raised where the batch is asked for
            self._ready.put(error)

    def __next__(self) -> Any:
        ready = self._ready.get()
        if isinstance(ready, BaseException):
            raise ready
        batch, copied = ready
        current = torch.cuda.current_stream(self.device)
        current.wait_event(copied)
        for tensor in _tensors(batch):
            tensor.record_stream(current)  # its memory is not given away while the step still reads it
        return batch
