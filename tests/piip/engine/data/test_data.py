"""Training data: what a batch depends on."""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import pickle
import random
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from .... import require

require.detectron2()

from detectron2.config import instantiate
from detectron2.data import DatasetMapper
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.serialize import PicklableWrapper

from piip.engine.config import load_config
from piip.engine.data import prefetch
from piip.engine.data.loader import BatchSampler, TrainLoader
from piip.engine.data.prefetch import prefetch_to_device, to_device
from piip.engine.data.workers import DataError, restart_on_worker_death
from piip.engine.trainer import Trainer
from piip.seeding import mix_seed

from ...tiny_config import QUICK_CONFIG


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


@pytest.mark.parametrize(
    "config",
    [
        "COCO/mask_rcnn_piip_tsb_1120_896_448_1x.py",
        "COCO/mask_rcnn_piip_h6b_1024_512_1x.py",
        "COCO/vitdet_recipe/mask_rcnn_piip_tsb_1120_896_448_100ep.py",
        "ADE20K/upernet_piip_tsb_896_448_336_160k.py",
    ],
)
def test_augmentations_reach_workers(config: str) -> None:
    """They are sent to processes that share nothing with this one: resizes, crops, jitter, colours."""
    mapper = load_config(str(QUICK_CONFIG.parents[1] / config)).dataloader.train.mapper
    made = instantiate(mapper)
    again = pickle.loads(pickle.dumps(PicklableWrapper(made)))
    assert type(again) is type(made)
    assert len(again.augmentations.augs) == len(mapper.augmentations)


def test_mappers_of_detectron2_read_upright_images_once(tmp_path: Path) -> None:
    """A TIFF that Detectron2's own reader turns twice, and one of 12 bits that it makes black."""
    upright = np.arange(4 * 6, dtype=np.uint8).reshape(4, 6) * 10
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(np.rot90(upright).copy()).save(tmp_path / "a.tif", exif=exif)
    Image.fromarray(np.rot90(upright / 240 * 4095).astype(np.uint16)).save(tmp_path / "b.png", exif=exif)
    mapper = DatasetMapper(is_train=False, augmentations=[], image_format="BGR")
    for name, expected in (("a.tif", upright), ("b.png", np.rint(upright / 230 * 255))):
        image = mapper({"file_name": str(tmp_path / name), "width": 6, "height": 4})["image"]
        assert np.abs(image.numpy() - expected).max() <= (0 if name == "a.tif" else 11)


def test_nothing_but_unreadable_images_is_an_error() -> None:
    records = [{"width": 2, "height": 1, "index": i, "file_name": f"broken-{i}"} for i in range(3)]
    made = TrainLoader(records, mapper=open_or_fail, total_batch_size=2)
    with pytest.raises(ValueError, match=r"10 images in a row cannot be used, lastly broken-\d \(OSError"):
        next(iter(made))


class DyingMapper:
    """Kills its process, as the kernel does when memory runs out, at some images.

    Args:
        folder: where deaths are noted.
        once, always: indices of images; at the one only the first time, at the other each time.
    """

    def __init__(self, folder: Path, once: int = -1, always: int = -1) -> None:
        self.folder, self.once, self.always = folder, once, always

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        index = record["index"]
        if index == self.always or (index == self.once and not (self.folder / "died").exists()):
            (self.folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return draw_numbers(record)


def with_deaths(folder: Path, **indices: int) -> TrainLoader:
    records = [{"index": i, "width": 2, "height": 1, "file_name": f"{i}.jpg"} for i in range(6)]
    made = TrainLoader(records, mapper=DyingMapper(folder, **indices), total_batch_size=2, num_workers=2)
    made.set_position(7, 1)
    return made


def test_a_worker_that_dies_is_named_and_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No batch is left out, none comes twice, and this process's random numbers stay as they were."""
    expected = list(itertools.islice(with_deaths(tmp_path), 6))
    before = torch.get_rng_state()
    with caplog.at_level(logging.WARNING, logger="detectron2.piip"):
        assert list(itertools.islice(with_deaths(tmp_path, once=3), 6)) == expected
    assert torch.equal(torch.get_rng_state(), before)
    (line,) = [record.getMessage() for record in caplog.records if "data worker" in record.getMessage()]
    assert "was killed by SIGKILL, as the kernel does where memory runs out: loading goes on" in line


def test_workers_that_die_again_and_again_are_an_error(tmp_path: Path) -> None:
    """It names the images."""
    with pytest.raises(DataError, match=r"died 3 times in a row over batch \d.*\b3\.jpg") as caught:
        list(itertools.islice(with_deaths(tmp_path, always=3), 6))
    assert "\n" not in str(caught.value)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class LosesWhatIsReady:
    """Like a `DataLoader` whose worker dies of one batch and takes along those it had ready before it."""

    def __init__(self, start: int, ahead: int, culprit: int) -> None:
        self.numbers, self.ahead, self.culprit = itertools.count(start), ahead, culprit
        self._workers = [multiprocessing.get_context("fork").Process(target=die)]

    def __iter__(self) -> LosesWhatIsReady:
        return self

    def __next__(self) -> int:
        number = next(self.numbers)
        if number <= self.culprit < number + self.ahead:
            self._workers[0].start()
            raise RuntimeError("a worker exited unexpectedly")
        return number


def test_the_batch_a_worker_dies_of_is_told_from_those_that_go_with_it() -> None:
    """Read ahead, a batch is lost through one that comes after it; one by one, none is."""
    loaders: list[tuple[int, bool]] = []

    def load(number: int, one_by_one: bool) -> Any:
        loaders.append((number, one_by_one))
        return LosesWhatIsReady(number, ahead=1 if one_by_one else 4, culprit=8)

    with pytest.raises(DataError, match=r"over batch 8 .* images 8\.jpg") as caught:
        list(restart_on_worker_death(load, 1, lambda number: [f"{number}.jpg"], ahead=4))
    assert loaders == [(1, False), (5, True), (8, True), (8, True)]
    assert "SIGKILL" in str(caught.value)


def test_after_a_death_batches_are_read_ahead_again() -> None:
    """Once those are through of which it may have come."""
    loaders: list[tuple[int, bool]] = []

    def load(number: int, one_by_one: bool) -> Any:
        loaders.append((number, one_by_one))
        return LosesWhatIsReady(number, ahead=1, culprit=3 if len(loaders) == 1 else -1)

    batches = restart_on_worker_death(load, 1, lambda number: [], ahead=4)
    assert list(itertools.islice(batches, 9)) == [*range(1, 10)]
    assert loaders == [(1, False), (3, True), (7, False)]


def annotated() -> list[dict[str, Any]]:
    instances = Instances((4, 4), gt_boxes=Boxes(torch.ones(2, 4)), gt_masks=BitMasks(torch.ones(2, 4, 4)))
    instances.gt_classes = torch.zeros(2)
    return [{"image": torch.zeros(3, 4, 4), "instances": instances, "file_name": "a.jpg"}]


def test_what_goes_to_the_device() -> None:
    """Every tensor, annotations included; all else stays."""
    (moved,) = to_device(annotated(), torch.device("meta"))
    assert moved["file_name"] == "a.jpg"
    tensors = list(prefetch._tensors([moved]))
    assert len(tensors) == 4
    assert all(tensor.is_meta for tensor in tensors)


CUDA = torch.cuda


class FakeGPU:
    """Stands for `torch.cuda`: notes in which order copies are waited for."""

    def __init__(self) -> None:
        self.waited: list[int] = []
        self.recorded = itertools.count()

    def Stream(self, device: torch.device) -> FakeGPU:  # noqa: N802 - torch.cuda's name
        return self

    def stream(self, stream: FakeGPU) -> FakeGPU:
        return self

    device = current_stream = stream

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...

    def __getattr__(self, name: str) -> Any:
        return getattr(CUDA, name)

    def record_event(self) -> int:
        return next(self.recorded)

    def wait_event(self, event: int) -> None:
        self.waited.append(event)


def test_batches_are_copied_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, each waited for before it is used, at most three ahead; an error comes in its place."""
    gpu, taken = FakeGPU(), []

    def batches() -> Any:
        for number in range(6):
            taken.append(number)
            yield [{"image": number}]
        raise DataError("no more")

    monkeypatch.setattr(prefetch.torch, "cuda", gpu)
    ahead = prefetch_to_device(batches(), torch.device("meta"))
    for number in range(6):
        assert next(ahead) == [{"image": number}]
        assert gpu.waited == list(range(number + 1))
        assert len(taken) <= number + 1 + 3  # two are ready, one is being put there
    with pytest.raises(DataError, match="no more"):
        next(ahead)
    with pytest.raises(StopIteration):  # not for ever nothing
        next(ahead)


def test_loading_stops_with_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that copies ahead, and with it the workers that it takes from."""
    monkeypatch.setattr(prefetch.torch, "cuda", FakeGPU())
    model = torch.nn.Linear(1, 1)
    model.forward = lambda batch: {"loss": model.weight.sum()}  # type: ignore[method-assign, assignment]
    made = loader(2)
    made.device = torch.device("cuda")
    monkeypatch.setattr(prefetch, "to_device", lambda batch, device: batch)
    trainer = Trainer(model, made, torch.optim.SGD(model.parameters(), lr=0.0), seed=0)
    trainer.device = torch.device("cpu")
    before = set(multiprocessing.active_children())
    trainer.train(0, 2)
    assert not [thread for thread in threading.enumerate() if thread.name == "reading"]
    assert set(multiprocessing.active_children()) <= before
