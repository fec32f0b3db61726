"""Losses that are not finite: passed over as often as allowed, then a stop with a report."""

from __future__ import annotations

import json
import logging
import multiprocessing
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ... import require

require.detectron2()

from detectron2.engine.train_loop import HookBase

from piip.engine.checkpoints.checkpoint import Checkpointer
from piip.engine.data.workers import DataError
from piip.engine.distributed.collectives import barrier
from piip.engine.hooks import PeriodicCheckpointer
from piip.engine.logs.monitoring import PartMetrics
from piip.engine.nonfinite import NonfiniteGuard
from piip.engine.trainer import Trainer


class Roots(nn.Module):
    """Loss is the root of the batch's numbers, scaled: NaN where one is negative."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Linear(1, 1, bias=False)
        self.root = Root()

    def forward(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        images = torch.stack([record["image"] for record in batch])
        return {"loss_scale": self.scale(images).square().mean(), "loss_root": self.root(images).mean()}


class Root(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sqrt()


def batch(value: float) -> list[dict[str, Any]]:
    return [{"image": torch.full((2, 1), value), "file_name": f"{value:g}.jpg", "image_id": 7}]


def run(values: list[float], tolerated: int, folder: Path) -> Trainer:
    """A training on these batches."""
    torch.manual_seed(0)
    model = Roots()
    trainer = Trainer(
        model,
        [batch(value) for value in values],
        torch.optim.SGD(model.parameters(), lr=0.1),
        seed=0,
        guard=NonfiniteGuard(tolerated, folder),
    )
    trainer.register_hooks([PartMetrics(model, period=1)])
    trainer.train(0, len(values))
    return trainer


def test_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The weights are those of a run without these steps, and each is named with its images."""
    with caplog.at_level(logging.WARNING, logger="detectron2.piip"):
        skipping = run([1.0, -1.0, -2.0, 2.0, -3.0], 2, tmp_path)
    assert torch.equal(skipping.model.scale.weight, run([1.0, 2.0], 0, tmp_path).model.scale.weight)
    lines = [record.getMessage() for record in caplog.records if "is passed over" in record.getMessage()]
    assert len(lines) == 3
    assert "iteration 2 is passed over (loss is not finite, loss_scale " in lines[1]
    assert "loss_root nan), 2 of 2 in a row" in lines[1]
    assert lines[1].endswith("its images: -2.jpg")
    assert list(tmp_path.iterdir()) == []


def test_once_too_often(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The report says which loss, which images, where it began, and the norms."""
    with pytest.raises(FloatingPointError, match=r"diverged at iteration 2 \(loss is not finite") as caught:
        run([1.0, -1.0, -4.0, 1.0], 1, tmp_path)
    (path,) = tmp_path.glob("nonfinite-*.json")
    assert str(path) in str(caught.value)
    report = json.loads(path.read_text())
    assert report["iteration"] == 2
    assert report["losses"]["loss_root"] == "nan" and report["losses"]["loss_scale"] > 0
    assert report["images"] == [
        {"file_name": "-4.jpg", "image_id": 7, "size": [2, 1], "lowest": -4.0, "highest": -4.0}
    ]
    assert report["first_nonfinite"] == "root"
    # loss_scale is (w * x)**2, and the last step was on x = 1: its gradient was 2 w, and left w - 0.2 w
    weight = report["weight_norms"]["scale"]
    assert report["gradient_norms"]["scale"] == pytest.approx(2 * weight / 0.8, rel=1e-5)  # six digits kept
    assert report["nonfinite_weights"] == []
    assert "first output that is not finite: root" in caplog.text


def test_broken_weights_are_named(tmp_path: Path) -> None:
    model = Roots()
    with torch.no_grad():
        model.scale.weight.fill_(torch.inf)
    trainer = Trainer(
        model,
        [batch(1.0)],
        torch.optim.SGD(model.parameters(), lr=0.1),
        seed=0,
        guard=NonfiniteGuard(0, tmp_path),
    )
    with pytest.raises(FloatingPointError):
        trainer.train(0, 1)
    report = json.loads(next(tmp_path.iterdir()).read_text())
    assert report["nonfinite_weights"] == ["scale.weight"]
    assert report["first_nonfinite"] == "scale"
    assert report["weight_norms"] == {"scale": "inf"}


def test_tolerance_is_a_number_of_steps() -> None:
    with pytest.raises(ValueError, match=r"train\.skip_nonfinite is -1: expected the number of steps"):
        NonfiniteGuard(-1)


def share(rank: int, folder: Path, values: list[float], ends: multiprocessing.SimpleQueue[Any]) -> None:
    """One of two processes of a training; tells how it ended, and with which weight."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2
    )
    torch.manual_seed(0)
    model = Roots()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = NonfiniteGuard(1, folder)
    trainer = Trainer(model, [batch(value) for value in values], optimizer, seed=0, guard=guard)
    try:
        trainer.train(0, 5)
    except (DataError, FloatingPointError) as end:
        ends.put((rank, type(end).__name__, str(end), trainer.completed))
    barrier(timedelta(seconds=30))


def in_two(function: Callable[..., None], arguments: Callable[[int, Any], tuple[Any, ...]]) -> list[Any]:
    """What two processes tell, by rank."""
    context = multiprocessing.get_context("fork")
    ends = context.SimpleQueue()
    processes = [context.Process(target=function, args=arguments(rank, ends)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    return sorted(ends.get() for _ in processes)


@pytest.mark.parametrize(
    ("values", "end", "completed", "reason"),
    [
        ([[1.0, 1.0, 1.0, 1.0], [1.0, -1.0, 1.0]], "DataError", 2, "StopIteration"),
        ([[1.0, 1.0, 1.0, 1.0], [1.0, -1.0, -2.0]], "FloatingPointError", 1, "loss_root nan"),
    ],
)
def test_processes_decide_alike(
    tmp_path: Path, values: list[list[float]], end: str, completed: int, reason: str
) -> None:
    """What only one of them meets, a NaN or the end of its data, no other waits for."""
    told = in_two(share, lambda rank, ends: (rank, tmp_path, values[rank], ends))
    assert [entry[1] for entry in told] == [end, end]
    assert [entry[3] for entry in told] == [completed, completed]
    assert "in another process" in told[0][2]
    assert reason in told[1][2]
    assert [path.name for path in tmp_path.glob("nonfinite-*")] == (
        ["nonfinite-0000002-rank1.json"] if end == "FloatingPointError" else []
    )


class Breaks(HookBase):
    """A weight becomes infinite after an iteration."""

    def after_step(self) -> None:
        if self.trainer.iter == 1:
            nn.init.constant_(self.trainer.model.scale.weight, torch.inf)


def save(rank: int, folder: Path, ends: multiprocessing.SimpleQueue[Any]) -> None:
    """One of two processes with a checkpoint after each step."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2
    )
    model = Roots()
    trainer = Trainer(model, [batch(1.0)] * 5, torch.optim.SGD(model.parameters(), lr=0.1), seed=0)
    checkpointer = Checkpointer(model, str(folder / "output"), trainer=trainer)
    trainer.register_hooks([Breaks() if rank == 1 else None, PeriodicCheckpointer(checkpointer, period=1)])
    try:
        trainer.train(0, 5)
    except FloatingPointError as end:
        ends.put((rank, str(end), trainer.completed))


def test_weights_of_one_process_end_all(tmp_path: Path) -> None:
    """The main process's are finite, and it must not wait for one that has ended."""
    (tmp_path / "output").mkdir()
    told = in_two(save, lambda rank, ends: (rank, tmp_path, ends))
    for _, reason, completed in told:
        assert "checkpoint of iteration 1 not written: parameter scale.weight is infinite or NaN" in reason
        assert completed == 1
    assert (tmp_path / "output/last_checkpoint").read_text() == "model_0000000.pth"
