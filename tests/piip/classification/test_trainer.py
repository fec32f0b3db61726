"""Training of classifiers: steps that repeat, runs that go on exactly, several processes, how it stops."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ... import require

require.detectron2()

from piip.classification.checkpoint import ClassifierCheckpointer
from piip.classification.data import Processes
from piip.classification.evaluation import evaluate
from piip.classification.trainer import Trainer
from piip.engine.distributed.preemption import Preempted

from .tiny import classifier, trainer, write_images


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_images(folder, "train", 12)
    return folder


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def everything(trainer: Trainer) -> dict[str, Tensor]:
    """Weights, their average, and the optimizer's moments."""
    assert trainer.ema is not None
    tensors = {f"model.{k}": v for k, v in trainer.model.state_dict().items()}
    tensors |= {f"ema.{k}": v for k, v in trainer.ema.state_dict().items()}
    for number, state in trainer.optimizer.state_dict()["state"].items():
        tensors |= {f"{number}.{k}": v for k, v in state.items()}
    return {key: tensor.clone() for key, tensor in tensors.items()}


def stop_after(run: Trainer, iterations: int) -> None:
    """Train that far, and stop as Ctrl-C would."""
    step = run.loop.run_step

    def interrupted() -> None:
        if run.loop.iter == iterations:
            raise KeyboardInterrupt
        step()

    run.loop.run_step = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run.train()


@pytest.mark.parametrize(
    ("stop", "period", "num_workers"), [(3, 0, 0), (5, 2, 0), (5, 2, 1)], ids=["epoch", "within", "workers"]
)
def test_going_on_is_exact(root: Path, tmp_path: Path, stop: int, period: int, num_workers: int) -> None:
    """Augmented, mixed, with drop path: bit for bit a run that never stopped; the last batches are redone."""
    whole = trainer(root, tmp_path / "whole")
    whole.train()

    options = {"checkpoint_period": period, "num_workers": num_workers}
    stop_after(trainer(root, tmp_path / "parts", **options), stop)
    rest = trainer(root, tmp_path / "parts", seed=99, **options)  # the checkpoint's seed stands over it
    assert rest.resume()
    assert rest.iteration == (4 if period else 3)
    rest.train()
    iterations = [line["iteration"] for line in metrics(tmp_path / "parts")]
    assert iterations == list(range(6))  # each once, those done twice too
    expected, found = everything(whole), everything(rest)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_another_seed_is_another_run(root: Path, tmp_path: Path) -> None:
    """What the test above compares does depend on what is drawn."""
    runs = [trainer(root, tmp_path / str(seed), seed=seed, epochs=1) for seed in (1, 2)]
    runs[1].model.load_state_dict(runs[0].model.state_dict())
    for run in runs:
        run.train()
    assert not torch.equal(runs[0].model.head.head.weight, runs[1].model.head.head.weight)


def test_not_gone_on_from_another_training(root: Path, tmp_path: Path) -> None:
    assert not trainer(root, tmp_path).resume()  # nothing there yet
    trainer(root, tmp_path, epochs=1).train()
    with pytest.raises(ValueError, match=r"iterations_per_epoch is 3, now it is 6"):
        trainer(root, tmp_path, batch_size=2).resume()
    with pytest.raises(ValueError, match=r"train\.ema"):
        trainer(root, tmp_path, ema=False).resume()
    last = tmp_path / "model_final.pth"
    kept = torch.load(last, weights_only=True)
    kept["trainer"]["iteration"] = 6
    torch.save(kept, last)
    with pytest.raises(ValueError, match=r"train\.plan\.epochs=2 are 6 iterations, and .* has 7 already"):
        trainer(root, tmp_path).resume()
    torch.save({"model": kept["model"], "optimizer": {}, "iteration": 3, "classes": ["ash"]}, last)
    with pytest.raises(ValueError, match="is of an earlier version and cannot be resumed: start from its"):
        trainer(root, tmp_path).resume()
    loaded = ClassifierCheckpointer(classifier()).load(
        str(last), []
    )  # it evaluates and starts others as ever
    assert loaded["metadata"]["classes"] == ["ash"]


def test_checkpoints_and_metrics(root: Path, tmp_path: Path) -> None:
    """The newest are kept, the last one is whole, and both weights and average can be read from it."""
    run = trainer(root, tmp_path, epochs=4, keep_checkpoints=2)
    run.train(lambda model: evaluate(model, run.batches.epoch(0)))
    assert sorted(p.name for p in tmp_path.glob("*.pth")) == [
        "model_0000008.pth", "model_0000011.pth", "model_final.pth",
    ]  # fmt: skip
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    kept = torch.load(tmp_path / "model_final.pth", weights_only=True)
    weights, average = kept["model"], kept["ema"]
    assert kept["metadata"]["classes"] == ["ash", "birch", "cedar"]
    assert run.ema is not None
    key = "head.head.weight"
    assert torch.equal(weights[key], run.model.state_dict()[key])
    assert torch.equal(average[key], run.ema.state_dict()[key])
    assert not torch.equal(weights[key], average[key])

    lines = metrics(tmp_path)
    assert [line["iteration"] for line in lines if "total_loss" in line] == list(range(12))
    assert [line["epoch"] for line in lines if "epoch" in line] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    evaluations = [line for line in lines if "top1" in line]
    assert [line["iteration"] for line in evaluations] == [2, 5, 8, 12]  # the last one after training
    assert all({"top1", "top5", "loss", "images", "ema_top1"} <= line.keys() for line in evaluations)


def test_schedule_lags_as_published(root: Path, tmp_path: Path) -> None:
    """With a lag of one epoch the first two have the rate of the first."""
    from timm.scheduler import create_scheduler_v2

    def rates(lag: int) -> list[float]:
        run = trainer(root, tmp_path / str(lag), epochs=4, schedule_lag=lag)
        for group in run.optimizer.param_groups:
            group["lr"] = group["initial_lr"] = 1.0
        run.scheduler, _ = create_scheduler_v2(
            run.optimizer, "cosine", num_epochs=4, warmup_epochs=2, warmup_lr=0.5
        )
        run.train()
        return [line["lr"] for line in metrics(tmp_path / str(lag))[::3]]

    cosine = [0.5 * (1 + math.cos(math.pi * t / 4)) for t in (2, 3)]
    assert rates(0) == pytest.approx([0.5, 0.75, *cosine])
    assert rates(1) == pytest.approx([0.5, 0.5, 0.75, cosine[0]])


def break_batch(run: Trainer, number: int) -> None:
    """Let the images of one iteration of the first epoch be NaN."""
    epoch = run.batches.epoch

    def broken(*position: int) -> Iterator[tuple[Tensor, Tensor]]:
        for index, (images, targets) in enumerate(epoch(*position), start=position[1]):
            yield torch.full_like(images, math.nan) if index == number else images, targets

    run.batches.epoch = broken  # type: ignore[method-assign]


def test_divergence_stops(root: Path, tmp_path: Path) -> None:
    """The weights stay those of the last step, and the report names the images."""
    run = trainer(root, tmp_path, checkpoint_period=2)
    break_batch(run, 2)
    with pytest.raises(FloatingPointError, match=r"diverged at iteration 2 \(loss is not finite, loss nan\)"):
        run.train()
    kept = torch.load(tmp_path / "model_0000001.pth", weights_only=True)["model"]
    assert all(torch.equal(value, kept[key]) for key, value in run.model.state_dict().items())
    report = json.loads((tmp_path / "nonfinite-0000002-rank0.json").read_text())
    assert [image["lowest"] for image in report["images"]] == ["nan"] * 4
    assert {Path(image["file_name"]).suffix for image in report["images"]} == {".png"}
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"


def test_bfloat16(root: Path, tmp_path: Path) -> None:
    """Products in bfloat16, weights and their average in float32; the loss is close to float32's."""
    losses = {}
    for precision in ("float32", "bfloat16"):
        run = trainer(root, tmp_path / precision, precision=precision, drop_path=0.0, epochs=1)
        run.train()
        losses[precision] = metrics(tmp_path / precision)[0]["total_loss"]
        assert all(p.dtype == torch.float32 for p in run.model.parameters())
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)  # 8 bits of mantissa


def _rank(rank: int, root: Path, output: Path, broken: int | None) -> None:
    """One of two processes; the rendezvous is a file."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{output / 'rendezvous'}", rank=rank, world_size=2
    )
    run = trainer(root, output, batch_size=2, processes=Processes(rank, 2), mixing=0.0, drop_path=0.0)
    if broken is None:
        run.train()
    else:
        if rank == 1:
            break_batch(run, broken)
        with pytest.raises(FloatingPointError, match=f"diverged at iteration {broken}"):
            run.train()
    torch.distributed.destroy_process_group()


def test_two_processes_are_one_with_the_same_batch(root: Path, tmp_path: Path) -> None:
    """Same images, same augmentations, same losses.

    To 1e-5, as sums run in another order; each loss depends on all steps before. Mixing pairs images of one
    process, and drop path is drawn in each: both are off here.
    """
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one = trainer(root, tmp_path / "one", mixing=0.0, drop_path=0.0)
    one.train()
    torch.multiprocessing.spawn(_rank, (root, tmp_path / "two", None), nprocs=2)

    def losses(name: str) -> list[float]:
        return [line["total_loss"] for line in metrics(tmp_path / name)]

    assert len(losses("one")) == 6
    assert losses("two") == pytest.approx(losses("one"), rel=1e-5)


def test_a_loss_of_one_process_ends_both(root: Path, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_rank, (root, tmp_path, 1), nprocs=2)
    assert [path.name for path in tmp_path.glob("nonfinite-*")] == ["nonfinite-0000001-rank1.json"]


def test_sigterm_saves_and_the_run_goes_on(root: Path, tmp_path: Path) -> None:
    run = trainer(root, tmp_path)
    step = run.loop.run_step

    def terminated() -> None:
        step()
        if run.loop.iter == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    run.loop.run_step = terminated  # type: ignore[method-assign]
    with pytest.raises(Preempted):
        run.train()
    rest = trainer(root, tmp_path)
    assert rest.resume()
    assert rest.iteration == 2


def test_batches_that_cannot_be_mixed(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"3 images a process cannot be mixed in pairs"):
        trainer(root, tmp_path, batch_size=3)
