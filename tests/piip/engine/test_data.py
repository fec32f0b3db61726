"""Training data: what a batch depends on."""

from __future__ import annotations

import itertools
import logging
import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ... import require

require.detectron2()

from piip.engine.data import BatchSampler, TrainLoader
from piip.seeding import mix_seed


def take(sampler: BatchSampler, number: int) -> list[list[tuple[int, int]]]:
    return list(itertools.islice(sampler, number))


@given(
    num_images=st.integers(1, 13),
    batch_size=st.integers(1, 5),
    start=st.integers(0, 9),
    grouped=st.booleans(),
    rank=st.integers(0, 2),
)
def test_batches_from_anywhere(
    num_images: int, batch_size: int, start: int, grouped: bool, rank: int
) -> None:
    """Starting at batch n gives what a sampler that started at 0 gives from n on."""
    options: dict[str, Any] = {"seed": 5, "rank": rank, "world_size": 3}
    options["wide"] = [i % 3 == 0 for i in range(num_images)] if grouped else None
    whole = take(BatchSampler(num_images, batch_size, **options), start + 4)
    assert take(BatchSampler(num_images, batch_size, start=start, **options), 4) == whole[start:]


def test_every_image_once_an_epoch_over_all_ranks() -> None:
    samplers = [BatchSampler(12, 2, seed=0, rank=rank, world_size=3) for rank in range(3)]
    draws = [draw for sampler in samplers for batch in take(sampler, 4) for draw in batch]
    assert sorted(number for _, number in draws) == list(range(24))
    for epoch in (0, 1):
        assert sorted(image for image, number in draws if number // 12 == epoch) == list(range(12))


def test_batches_of_one_orientation() -> None:
    wide = [index % 2 == 0 for index in range(11)]
    for batch in take(BatchSampler(11, 3, seed=0, wide=wide), 20):
        assert len({wide[image] for image, _ in batch}) == 1


def draw_numbers(record: dict[str, Any]) -> dict[str, Any]:
    """A mapper as random as augmentations are: it draws from all three generators."""
    return {
        "image": record["index"],
        "draws": (random.random(), float(np.random.rand()), float(torch.rand(()))),
    }


def loader(num_workers: int, iteration: int = 0, seed: int = 7) -> TrainLoader:
    records = [{"index": index, "width": 4 + index % 2, "height": 4} for index in range(9)]
    made = TrainLoader(records, mapper=draw_numbers, total_batch_size=2, num_workers=num_workers)
    made.set_position(seed, iteration)
    return made


def test_batches_depend_on_seed_and_number_only() -> None:
    """Neither the workers, nor where loading began, nor the process's own random state matter."""
    reference = list(itertools.islice(loader(0), 8))
    torch.manual_seed(123)
    assert list(itertools.islice(loader(2), 8)) == reference
    assert list(itertools.islice(loader(0, iteration=5), 3)) == reference[5:]
    assert list(itertools.islice(loader(2, iteration=5), 3)) == reference[5:]
    assert list(itertools.islice(loader(0, seed=8), 8)) != reference
    draws = [sample["draws"] for batch in reference for sample in batch]
    assert len(set(draws)) == len(draws)


def test_uneven_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 4)
    with pytest.raises(ValueError, match="total_batch_size 6 must be a positive multiple of 4 processes"):
        TrainLoader([], mapper=draw_numbers, total_batch_size=6)


@given(st.integers(0, 2**32 - 1), st.integers(0, 1000))
def test_mixed_seeds_differ(seed: int, number: int) -> None:
    assert 0 <= mix_seed(seed, number) < 2**32
    assert len({mix_seed(seed), mix_seed(seed, number), mix_seed(seed, number + 1)}) == 3


BROKEN = "cannot be opened"


def open_or_fail(record: dict[str, Any]) -> dict[str, Any]:
    if record["file_name"].startswith("broken"):
        raise OSError(BROKEN)
    return draw_numbers(record)


def with_broken(num_workers: int, iteration: int = 0) -> TrainLoader:
    """Eight images, two of them unreadable."""
    kind = {2: "broken", 5: "broken"}
    records = [
        {"width": 2, "height": 1, "index": i, "file_name": f"{kind.get(i, 'good')}-{i}"} for i in range(8)
    ]
    made = TrainLoader(records, mapper=open_or_fail, total_batch_size=3, num_workers=num_workers)
    made.set_position(7, iteration)
    return made


@pytest.mark.parametrize("num_workers", [0, 2])
def test_unreadable_images_are_replaced_and_counted(
    num_workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Full batches, each file named once, and every batch the same from wherever the run goes on."""
    whole = with_broken(num_workers)
    with caplog.at_level(logging.WARNING, logger="detectron2.piip"):
        batches = list(itertools.islice(whole, 12))
    assert all(len(batch) == 3 for batch in batches)
    assert all(set(sample) == set(batches[0][0]) for batch in batches for sample in batch)
    assert whole.skipped == {f"broken-{i}": f"OSError: {BROKEN}" for i in (2, 5)}
    assert sum("that cannot be used" in record.getMessage() for record in caplog.records) == 2
    assert list(itertools.islice(with_broken(0, 5), 3)) == batches[5:8]


def test_nothing_but_unreadable_images_is_an_error() -> None:
    records = [{"width": 2, "height": 1, "index": i, "file_name": f"broken-{i}"} for i in range(3)]
    made = TrainLoader(records, mapper=open_or_fail, total_batch_size=2)
    with pytest.raises(ValueError, match=r"10 images in a row cannot be used, lastly broken-\d \(OSError"):
        next(iter(made))
