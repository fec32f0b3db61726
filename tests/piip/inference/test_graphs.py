"""When maps are recorded and replayed, shown with recordings that a CPU can make; real ones: test_device."""

from __future__ import annotations

import copy
import gc
import logging
import math
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from piip.inference.graphs import ReplayedMaps, replay_maps

from ..models import tiny_piip
from ..test_timm_branch import DINOV3, small


class Tape(TorchDispatchMode):
    """A recording that a CPU can make: operators run again on the memory they had, as a graph's kernels do.

    What they read and did not make is not kept alive: its memory turns to NaN once its owner lets go of it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[Any, Any, Any, Any]] = []
        self.addresses: dict[int, Tensor] = {}

    def address(self, value: Any) -> Any:
        """A tensor on the same memory, which is no reference to the tensor."""
        if not isinstance(value, Tensor):
            return value
        if id(value) not in self.addresses:
            self.addresses[id(value)] = memory = value.detach()
            if value.is_floating_point() and value.numel():
                weakref.finalize(value, memory.numpy().fill, math.nan)
            weakref.finalize(value, self.addresses.pop, id(value), None)
        return self.addresses[id(value)]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        outputs = func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
        self.addresses |= {id(tensor): tensor for tensor in made}  # the recording's own memory
        self.steps.append((func, *tree_map(self.address, (args, kwargs)), made))
        return outputs

    def play(self) -> None:
        for func, args, kwargs, made in self.steps:
            again = [leaf for leaf in tree_leaves(func(*args, **kwargs)) if isinstance(leaf, Tensor)]
            for buffer, tensor in zip(made, again, strict=True):
                if buffer.data_ptr() != tensor.data_ptr():
                    buffer.copy_(tensor)


class Recording(ReplayedMaps):
    """Records on the CPU."""

    def __init__(
        self,
        max_graphs: int = 16,
        compute: Callable[[Tensor], Sequence[Tensor]] = lambda x: [x + 1, x * 2],
        module: nn.Module | None = None,
    ) -> None:
        super().__init__(compute, module or nn.Linear(1, 1).eval(), max_graphs)
        self.recorded: list[tuple[int, ...]] = []

    def _can_record(self, x: Tensor) -> bool:
        return True

    def _capture(self, static: Tensor, reads: Any) -> tuple[Callable[[], None], Sequence[Tensor]]:
        self.recorded.append(tuple(static.shape))
        self.compute(static)
        tape = Tape()
        with reads, tape:
            outputs = self.compute(static)
        return tape.play, outputs


def test_a_recording_keeps_what_it_reads() -> None:
    """The branch forgets the table of rotary positions, another part its mask: the graph still reads them."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch = small(DINOV3)
            self.mask = torch.full((1,), 2.0)

        def forward(self, x: Tensor) -> list[Tensor]:
            return [self.branch.run_stage(*self.branch.embed_tokens(x), 0, 1)[0] * self.mask]

    module = Masked().eval()
    maps = Recording(compute=module, module=module)
    first, second = torch.randn(2, 1, 3, 32, 32)
    with torch.inference_mode():
        (expected,) = module(second)
        for _ in range(2):
            maps(first)
        for side in range(48, 48 + 16 * 12, 16):
            module(torch.randn(1, 3, side, 32))
        assert (2, 2) not in [key[:2] for key in module.branch._rotary]
        module.mask = torch.full((1,), 3.0)  # what is no parameter or buffer holds as recorded
        gc.collect()
        torch.testing.assert_close(maps(second)[0], expected)
    assert maps.recorded == [(1, 3, 32, 32)]


def test_the_tape_shows_stale_memory() -> None:
    """What the test above would show of a recording that keeps nothing."""
    tape, table = Tape(), torch.ones(2)
    with tape:
        out = table + 1
    tape.play()
    assert out.tolist() == [2, 2]
    del table
    tape.play()
    assert out.isnan().all()


def test_replaced_weights_and_buffers_are_recorded_anew() -> None:
    module = nn.BatchNorm1d(3).eval()
    maps, x = Recording(compute=lambda x: [module(x)], module=module), torch.ones(2, 3)
    with torch.no_grad():
        for _ in range(3):
            maps(x)
        module.running_mean = torch.full((3,), 5.0)
        module.weight = nn.Parameter(torch.full((3,), 2.0))
        gc.collect()
        for _ in range(3):
            torch.testing.assert_close(maps(x)[0], module(x))
    assert len(maps.recorded) == 2


def test_threads_take_turns() -> None:
    """Each has the maps of its own input."""

    def slow(x: Tensor) -> list[Tensor]:
        return [x.sin().cos() for _ in range(20)]

    maps = Recording(compute=slow)
    inputs = [torch.full((50_000,), float(number)) for number in range(4)]
    for _ in range(2):
        maps(inputs[0])
    with ThreadPoolExecutor(4) as pool:
        for number, outputs in enumerate(pool.map(maps, inputs * 25)):
            for out in outputs:
                assert torch.equal(out, inputs[number % 4].sin().cos())


def test_a_copy_records_for_itself() -> None:
    piip = tiny_piip().eval()
    replay_maps(piip)
    other = copy.deepcopy(piip)
    replayed = vars(other)["forward_pyramid"]
    assert replayed.module is other and replayed.compute.__self__ is other and replayed.num_graphs == 0


def test_recorded_the_second_time() -> None:
    maps = Recording()
    outputs = []
    for number in range(4):
        outputs.append((number, maps(torch.full((2, 3), float(number)))))
        assert maps.recorded == ([] if number == 0 else [(2, 3)])
    for number, (more, twice) in outputs:  # a replay leaves what the one before gave
        assert torch.equal(more, torch.full((2, 3), number + 1.0))
        assert torch.equal(twice, torch.full((2, 3), number * 2.0))


def test_what_was_used_least_recently_goes() -> None:
    maps = Recording(max_graphs=2)
    for size in (1, 1, 2, 2, 1, 3, 3):  # 3 takes the place of 2
        maps(torch.ones(size))
    assert maps.recorded == [(1,), (2,), (3,)] and maps.num_graphs == 2
    maps(torch.ones(1))
    assert maps.recorded == [(1,), (2,), (3,)]
    maps(torch.ones(2))
    maps(torch.ones(2))
    assert maps.recorded == [(1,), (2,), (3,), (2,)]


def test_a_recording_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """What is recorded is replayed on, all else is computed, and the log says so, once."""
    maps = Recording()
    for size in (1, 1):
        maps(torch.ones(size))

    def fail(x: Tensor) -> Callable[[Tensor], Sequence[Tensor]]:
        raise torch.OutOfMemoryError("CUDA out of memory.\nAnd more.")

    maps._record = fail  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING, logger="detectron2.piip"):
        for size in (2, 2, 2, 3, 3, 1):
            more, twice = maps(torch.full((size,), 4.0))
            assert torch.equal(more, torch.full((size,), 5.0))
            assert torch.equal(twice, torch.full((size,), 8.0))
    (message,) = [record.message for record in caplog.records]
    assert message.startswith(
        "no graph for inputs of (2,): CUDA out of memory. It and sizes not recorded yet"
    )
    assert maps.num_graphs == 1


def test_recordings_belong_to_size_precision_and_weights() -> None:
    maps, x = Recording(), torch.ones(2, 3)
    module = maps.module
    assert isinstance(module, nn.Linear)
    others = [x, x.double(), x.new_ones(3, 2).T]
    keys = [maps._key(each) for each in others]
    torch.set_autocast_enabled("cuda", True)  # torch.autocast would see that there is no GPU
    try:
        keys.append(maps._key(x))
    finally:
        torch.set_autocast_enabled("cuda", False)
    module.weight.data = module.weight.data.clone()
    keys.append(maps._key(x))
    assert len(set(keys)) == len(others) + 2 and maps._key(x.clone()) == keys[-1]


def test_on_a_cpu_nothing_changes() -> None:
    piip = tiny_piip().eval()
    x = torch.randn(1, 3, 64, 64)
    expected = piip(x)
    replay_maps(piip)
    replay_maps(piip)  # a second time: the same
    with torch.no_grad():
        for _ in range(3):
            assert torch.equal(piip(x), expected)
    assert isinstance(vars(piip)["forward_pyramid"], ReplayedMaps)
    assert not isinstance(vars(piip)["forward_pyramid"].compute, ReplayedMaps)
    assert vars(piip)["forward_pyramid"].num_graphs == 0
    piip(x).mean().backward()


def test_no_room_for_graphs() -> None:
    with pytest.raises(ValueError, match="max_graphs is 0: expected at least 1"):
        Recording(max_graphs=0)
