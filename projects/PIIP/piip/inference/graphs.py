"""Maps of a PIIP replayed from CUDA graphs.

A backbone of many small layers keeps the host of a fast GPU busier than the GPU: PIIP-TSB's starts two to
three thousand kernels, 40 ms of host time and more, for 14 ms of work on an H100. A graph starts all at once.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..backbone import PIIP

__all__ = ["ReplayedMaps", "replay_maps"]

_logger = logging.getLogger("detectron2.piip")

Maps = Sequence[Tensor]
_Replay = Callable[[Tensor], list[Tensor]]
_ENTRIES = ("forward_pyramid", "forward_branches")  # of a PIIP: all that models call


class _Reads(TorchDispatchMode):
    """Collects the tensors that a computation reads and did not make itself, parameters aside."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        super().__init__()
        self.tensors: dict[int, Tensor] = {}
        self._known = {parameter.untyped_storage()._cdata for parameter in parameters}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in _tensors([args, kwargs]):
            storage = tensor.untyped_storage()._cdata
            if storage not in self._known:
                self.tensors.setdefault(storage, tensor)
        outputs = func(*args, **(kwargs or {}))
        self._known |= {tensor.untyped_storage()._cdata for tensor in _tensors(outputs)} - self.tensors.keys()
        return outputs


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


@dataclass(frozen=True)
class _Recording:
    """A graph and the memory it works on.

    Attributes:
        static: its input.
        start: runs it.
        outputs: its maps, which the next run overwrites.
        reads: what else it reads, kept alive by standing here.
    """

    static: Tensor
    start: Callable[[], None]
    outputs: Maps
    reads: list[Tensor]

    def __call__(self, x: Tensor) -> list[Tensor]:
        self.static.copy_(x)
        self.start()
        return [out.clone() for out in self.outputs]


class ReplayedMaps:
    """A computation of maps on a GPU that is recorded as a CUDA graph for each size of input, and replayed.

    An input is computed as usual where its size (or precision) is new, recorded the second time, replayed
    from then on. A recording reads tensors by address: for parameters and buffers that were moved, cast or
    replaced it is made anew, all else that it reads it keeps alive. Threads take turns. Gradients are not
    recorded, nor are calls that a hook on a module wants to see. Modules are those of the first call: to
    exchange one later is not seen.

    Args:
        compute: from ``(B, 3, H, W)`` to maps; without random numbers or waiting for the GPU, as in
            evaluation.
        module: what `compute` runs, all of it.
        max_graphs: how many graphs are kept; the one not used for longest goes. Graphs keep memory for the
            activations of a run, which they share, and for their maps. Once a recording fails, for want of
            memory, say, no more are made, and the log says so.
    """

    def __init__(self, compute: Callable[[Tensor], Maps], module: nn.Module, max_graphs: int = 16) -> None:
        if max_graphs < 1:
            raise ValueError(f"max_graphs is {max_graphs}: expected at least 1")
        self.compute = compute
        self.module = module
        self.max_graphs = max_graphs
        self._replays: OrderedDict[tuple[Any, ...], _Replay | None] = OrderedDict()
        self._pool: Any = None
        self._refused = False  # whether a recording failed
        self._lock = threading.Lock()  # graphs write into the same memory
        self._last_read: torch.cuda.Event | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return ReplayedMaps, (self.compute, self.module, self.max_graphs)  # copies have no graphs yet

    @functools.cached_property
    def _modules(self) -> list[nn.Module]:
        """All modules, which take longer to find than to look at."""
        return list(self.module.modules())

    @property
    def num_graphs(self) -> int:
        """Graphs that are kept."""
        return sum(replay is not None for replay in self._replays.values())

    def __call__(self, x: Tensor) -> list[Tensor]:
        """The maps of ``x``, tensors of their own."""
        if self._can_record(x):
            with self._lock:
                if replay := self._replay_of(x):
                    return self._in_turn(replay, x)
        return list(self.compute(x))

    def _in_turn(self, replay: _Replay, x: Tensor) -> list[Tensor]:
        """Replay once the maps of the last replay are read, which another stream may be doing."""
        if self._last_read is not None:
            self._last_read.wait()
        maps = replay(x)
        if x.is_cuda:
            self._last_read = torch.cuda.current_stream(x.device).record_event()
        return maps

    def _replay_of(self, x: Tensor) -> _Replay | None:
        """What replays inputs like ``x``, recorded now where it is their second; None for no graph."""
        key = self._key(x)
        if self._refused:
            return self._replays.get(key)
        is_second = key in self._replays and self._replays[key] is None
        self._replays.setdefault(key, None)
        self._replays.move_to_end(key)
        if len(self._replays) > self.max_graphs:  # sizes met once count, too
            self._replays.popitem(last=False)
        if is_second:
            self._replays[key] = self._record_or_refuse(x)
        return self._replays[key]

    def _record_or_refuse(self, x: Tensor) -> _Replay | None:
        try:
            return self._record(x)
        except RuntimeError as error:  # no memory, or something that cannot be recorded
            self._refused = True
            reason = str(error).partition("\n")[0].rstrip(".")
            _logger.warning(
                "no graph for inputs of %s: %s. It and sizes not recorded yet are computed kernel by kernel, "
                "more slowly",
                tuple(x.shape),
                reason,
            )
            return None

    def _can_record(self, x: Tensor) -> bool:
        if not x.is_cuda or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return False
        if torch.cuda.is_current_stream_capturing():
            return False
        return not any(
            module.training or module._forward_hooks or module._forward_pre_hooks for module in self._modules
        )

    def _key(self, x: Tensor) -> tuple[Any, ...]:
        """All that a recording depends on."""
        half = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
        weights = (each for m in self._modules for each in (*m._parameters.values(), *m._buffers.values()))
        places = hash(tuple(weight.data_ptr() for weight in weights if weight is not None))
        exact = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        return x.shape, x.stride(), x.dtype, x.device, half, exact, places

    def _record(self, x: Tensor) -> _Replay:
        """A replay for inputs like ``x``."""
        # weights cast for autocast must be cast in the graph: what a cache holds is gone when it is replayed
        uncached = torch.autocast(
            "cuda",
            torch.get_autocast_dtype("cuda"),
            enabled=torch.is_autocast_enabled("cuda"),
            cache_enabled=False,
        )
        reads = _Reads(list(self.module.parameters()))
        # not in inference mode, whose tensors nothing outside of it may write to
        with torch.inference_mode(False), torch.no_grad(), uncached:
            static = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device).copy_(x)
            start, outputs = self._capture(static, reads)
        return _Recording(static, start, outputs, list(reads.tensors.values()))

    def _capture(self, static: Tensor, reads: _Reads) -> tuple[Callable[[], None], Maps]:
        """What computes the maps of ``static`` again, and where it writes them."""
        with torch.cuda.device(static.device):
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self.compute(static)  # libraries set up what they need outside of the graph
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"), reads:
                outputs = self.compute(static)
        return graph.replay, outputs


def replay_maps(model: nn.Module, max_graphs: int = 16) -> None:
    """Record and replay what the PIIPs of a model compute on a GPU, see :class:`ReplayedMaps`.

    Elsewhere, and in training, nothing changes.

    Args:
        model: changed in place.
        max_graphs: for each PIIP.
    """
    for module in model.modules():
        if isinstance(module, PIIP):
            for entry in _ENTRIES:
                if not isinstance(vars(module).get(entry), ReplayedMaps):
                    setattr(module, entry, ReplayedMaps(getattr(module, entry), module, max_graphs))
