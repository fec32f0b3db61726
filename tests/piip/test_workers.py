"""Processes that load data end with the training process, however that ends."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .. import require
from .tiny_config import REPOSITORY

_SECONDS = 15  # that they may outlive the training process


def slow(record: dict[str, Any]) -> dict[str, Any]:
    """A mapper: some workers are at work, others wait, when the training process ends."""
    time.sleep(0.1 * record["image_id"])
    return record


RECORDS = [{"image_id": number, "width": 2, "height": 1} for number in range(8)]


def detection(folder: Path) -> list[Iterator[Any]]:
    """The loaders of training and evaluation, which start workers from a fork server."""
    from piip.engine.data.loader import TrainLoader, evaluation_loader

    train = TrainLoader(RECORDS, mapper=slow, total_batch_size=2, num_workers=3)
    return [iter(train), iter(evaluation_loader(RECORDS, mapper=slow, num_workers=2))]


def classification(folder: Path) -> list[Iterator[Any]]:
    """timm's loaders, which fork."""
    from piip.classification.data import TrainBatches, evaluation_batches

    from .classification.tiny import loader, write_images

    write_images(folder, "train", 12)
    train, test = (loader(folder, "train", 2, num_workers=number) for number in (3, 2))
    return [TrainBatches(train).epoch(0), iter(evaluation_batches(test))]


def multimodal(folder: Path) -> list[Iterator[Any]]:
    """transformers' loader, which forks unless the settings say otherwise."""
    from torch import nn
    from transformers import TrainingArguments

    from piip.multimodal.train import _Trainer

    loaders = []
    for context in ("fork", "forkserver"):
        arguments = TrainingArguments(
            str(folder),
            use_cpu=True,
            per_device_train_batch_size=1,
            dataloader_num_workers=2,
            dataloader_multiprocessing_context=context,
        )
        trainer = _Trainer(nn.Linear(1, 1), arguments, train_dataset=RECORDS, data_collator=list)
        loaders.append(iter(trainer.get_train_dataloader()))
    return loaders


def train(kind: str, folder: str) -> None:
    """Load a batch of each loader, say so, and be at work."""
    iterators = globals()[kind](Path(folder))
    for iterator in iterators:
        next(iterator)
    print("loading", flush=True)
    for iterator in itertools.cycle(iterators):
        next(iterator, None)
        time.sleep(0.05)


def session(leader: int) -> list[int]:
    """Processes that a process started, and theirs, whether it is still there or not."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, own = status.read_text().rpartition(")")[2].split()[:4]
        except OSError:  # it has ended meanwhile
            continue
        if int(own) == leader and state != "Z":
            found.append(int(status.parent.name))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", ["detection", "classification", "multimodal"])
def test_workers_end_with_a_training_that_is_killed(kind: str, tmp_path: Path) -> None:
    if kind == "multimodal":
        pytest.importorskip("transformers")
    else:
        require.detectron2()
    code = f"from tests.piip.test_workers import train; train({kind!r}, {str(tmp_path)!r})"
    training = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=REPOSITORY,
    )
    try:
        assert training.stdout is not None and training.stdout.readline() == "loading\n"
        assert len(session(training.pid)) > 3
        training.kill()
        training.wait()
        end = time.monotonic() + _SECONDS
        while left := session(training.pid):
            assert time.monotonic() < end, f"{len(left)} processes are left after {_SECONDS} s"
            time.sleep(0.1)
    finally:
        training.kill()
        for process in session(training.pid):
            os.kill(process, signal.SIGKILL)
