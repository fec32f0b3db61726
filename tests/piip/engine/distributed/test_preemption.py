"""SIGTERM, data that end, full disks: a run stops where it can go on."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from .... import require

require.detectron2()

from piip.engine import evaluation
from piip.engine.checkpoints.checkpoint import Checkpointer
from piip.engine.data.workers import DataError
from piip.engine.distributed import preemption
from piip.engine.distributed.preemption import EXIT_STATUS, Preempted
from piip.engine.train import train
from piip.engine.trainer import Trainer
from piip.weights.files.tensors import same_content

from ...tiny_config import tiny_config
from ..test_train import FINAL, load


def at(iteration: int, action: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let something happen at the beginning of a step."""
    step = Trainer.run_step

    def disturbed(trainer: Trainer) -> None:
        if trainer.iter == iteration:
            action()
        step(trainer)

    monkeypatch.setattr(Trainer, "run_step", disturbed)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_saves_and_the_run_goes_on_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The step in which it comes is finished and saved, due or not, and the status says "again"."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(tiny_config(whole, monkeypatch))
    handler = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch, pytest.raises(Preempted) as caught:
        at(2, terminate, patch)
        train(tiny_config(stopped, monkeypatch))
    assert caught.value.code == EXIT_STATUS == 75
    assert signal.getsignal(signal.SIGTERM) is handler
    last = stopped / "output/model_0000002.pth"
    assert f"told to stop by SIGTERM after iteration 2: --resume continues from {last}" in caplog.text
    assert load(last)["iteration"] == load(last)["trainer"]["iteration"] == 2
    train(tiny_config(stopped, monkeypatch), resume=True)
    assert same_content(load(whole / FINAL)["trainer"], load(stopped / FINAL)["trainer"])
    assert same_content(load(whole / FINAL)["model"], load(stopped / FINAL)["model"])


def test_sigterm_during_an_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends between two images, and the step before is saved."""
    seen = []

    def told(results: object) -> object:
        seen.append(results)
        terminate()
        return results

    monkeypatch.setattr(evaluation, "with_tta", lambda cfg, model: Told(model, told))
    with pytest.raises(Preempted):
        train(tiny_config(tmp_path, monkeypatch, "train.eval_period=1", "train.checkpointer.period=100"))
    assert len(seen) == 1  # of four images
    assert (tmp_path / "output/last_checkpoint").read_text() == "model_0000000.pth"


class Told(torch.nn.Module):
    """A model with something to do after each call."""

    def __init__(self, model: torch.nn.Module, after: Callable[[object], object]) -> None:
        super().__init__()
        self.model, self.after = model, after

    def forward(self, batch: object) -> object:
        return self.after(self.model(batch))


def test_without_data_the_run_stops_with_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the last step that was done; going on repeats the one that found no batch."""

    def fails() -> None:
        raise DataError("data workers died 3 times in a row")

    with monkeypatch.context() as patch, pytest.raises(DataError, match="died 3 times"):
        at(3, fails, patch)
        train(tiny_config(tmp_path, monkeypatch, "train.checkpointer.period=100"))
    last = load(tmp_path / "output/model_0000002.pth")
    assert last["iteration"] == last["trainer"]["iteration"] == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_an_evaluation_without_data_stops_with_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """Also of a worker that died, and of an image that cannot be read: the step before is done and saved."""
    settings = (
        "train.eval_period=1",
        "train.checkpointer.period=100",
        f"dataloader.test.num_workers={workers}",
    )
    cfg = tiny_config(tmp_path, monkeypatch, *settings)
    next((tmp_path / "datasets/shapes/val").glob("*.png")).write_bytes(b"no image")
    with pytest.raises(DataError, match="cannot be evaluated"):
        train(cfg)
    assert (tmp_path / "output/last_checkpoint").read_text() == "model_0000000.pth"


def test_full_disk_stops_at_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose checkpoints cannot be kept would lose more than a period."""
    write = Checkpointer.save

    def full(checkpointer: Checkpointer, name: str, **content: object) -> None:
        if name != "model_0000001":
            raise OSError(f"{name}.pth was not written (No space left on device)")
        write(checkpointer, name, **content)

    monkeypatch.setattr(Checkpointer, "save", full)
    with pytest.raises(OSError, match="No space left on device"):
        train(tiny_config(tmp_path, monkeypatch, "train.max_iter=6"))
    assert (tmp_path / "output/last_checkpoint").read_text() == "model_0000001.pth"


def test_checkpoints_kept_count_those_of_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often a run is stopped, `max_to_keep` of them fill the disk."""
    few = ("train.checkpointer.period=1", "train.checkpointer.max_to_keep=2")
    for _ in range(2):
        with monkeypatch.context() as patch:
            train_until = ["train.max_iter=6", *few]
            at(2, terminate, patch)
            try:
                train(tiny_config(tmp_path, monkeypatch, *train_until), resume=True)
            except Preempted:
                continue
    kept = sorted(path.name for path in (tmp_path / "output").glob("model_0*.pth"))
    assert kept == ["model_0000004.pth", "model_0000005.pth"]


def test_watching_is_for_the_main_thread() -> None:
    """A training in another thread goes on without, as Python delivers no signals there."""
    entered = []

    def watch() -> None:
        with preemption.watch():
            entered.append(True)

    thread = threading.Thread(target=watch)
    thread.start()
    thread.join()
    assert entered == [True]


def test_passed_on_to_the_processes_that_train() -> None:
    """A launcher only waits; who waits there is told, and says how it ended."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()

    def wait() -> None:
        with preemption.watch():
            ready.set()
            preemption._told.wait(60)
            os._exit(EXIT_STATUS)

    child = context.Process(target=wait)
    child.start()
    assert ready.wait(60)
    with preemption.passed_on():
        terminate()
        child.join(60)
    assert child.exitcode == EXIT_STATUS
