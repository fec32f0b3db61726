"""When maps are recorded and replayed, shown with recordings that a CPU can make; real ones: test_device."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from piip.inference.graphs import ReplayedMaps, replay_maps

from ..models import tiny_piip


class Recording(ReplayedMaps):
    """Records on the CPU: a recording is the maps of its one input, which it writes anew each time."""

    def __init__(self, max_graphs: int = 16) -> None:
        module = nn.Linear(1, 1).eval()
        super().__init__(lambda x: [x + 1, x * 2], module, max_graphs)
        self.recorded: list[tuple[int, ...]] = []

    def _can_record(self, x: Tensor) -> bool:
        return True

    def _record(self, x: Tensor) -> Callable[[Tensor], Sequence[Tensor]]:
        self.recorded.append(tuple(x.shape))
        buffers = self.compute(x)

        def replay(x: Tensor) -> Sequence[Tensor]:
            for buffer, out in zip(buffers, self.compute(x), strict=True):
                buffer.copy_(out)
            return buffers

        return replay


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
