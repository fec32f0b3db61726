"""What a training writes down of itself."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from .... import require

require.detectron2()

from detectron2.engine.train_loop import HookBase

from lab.curves import draw, read_metrics
from piip.engine.config import load_config
from piip.engine.logs import monitoring
from piip.engine.logs.monitoring import PartMetrics, Throughput
from piip.engine.logs.writers import begin_metrics
from piip.engine.parameter_groups import part_namer
from piip.engine.pictures import Pictures
from piip.engine.renderer import Renderer
from piip.engine.train import build_model, train
from piip.engine.trainer import Trainer

from ...tiny_config import QUICK_CONFIG, tiny_config

PARTS = {
    *("branch1", "branch2", "branch3", "interactions", "merge"),
    *("neck", "proposal_generator", "roi_heads"),
}


def test_parts_of_a_detector() -> None:
    """Every parameter has one; wrappers of modules change nothing."""
    cfg = load_config(str(QUICK_CONFIG))
    model = build_model(cfg)
    part = part_namer(model)
    names = [name for name, _ in model.named_parameters()]
    assert {part(name) for name in names} == PARTS
    assert {part(name) for name in names if ".branches.0." in name} == {"branch1"}
    wrapped = part_namer(nn.ModuleDict({"module": model}))
    assert [wrapped(f"module.{name}") for name in names] == [part(name) for name in names]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """Output folder of a training with everything switched on, and the gradient norms of its second step."""
    folder = tmp_path_factory.mktemp("run")
    norms: dict[str, float] = {}

    def note(hook: PartMetrics) -> None:
        original(hook)
        if hook.trainer.iter == 1:
            squares: dict[str, float] = {}
            part = part_namer(hook.trainer.model)
            for name, parameter in hook.trainer.model.named_parameters():
                if parameter.grad is not None:
                    squares[part(name)] = (
                        squares.get(part(name), 0) + parameter.grad.double().square().sum().item()
                    )
            norms.update({name: math.sqrt(square) for name, square in squares.items()})

    original = PartMetrics.after_backward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PartMetrics, "after_backward", note)
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        cfg = tiny_config(
            folder,
            patch,
            "train.log=wandb",
            "train.pictures=2",
            "train.ema_decay=0.5",
            "train.eval_period=2",
            "train.log_period=2",
        )
        train(cfg)
    return folder / "output", norms


def test_metrics_by_part(run: tuple[Path, dict[str, float]]) -> None:
    """Gradient norms are those of the step, rates those of the optimizer, gammas start at zero."""
    history = read_metrics(run[0])
    assert {name.partition("/")[2] for name in history if name.startswith("lr/")} == PARTS
    for name, norm in run[1].items():
        # float32 sums over up to 1e5 squares, against float64
        assert history[f"grad_norm/{name}"][1] == pytest.approx(norm, rel=1e-4)
    gammas = {name: values for name, values in history.items() if name.startswith("gamma/")}
    assert len(gammas) == 3 * 4 * 2  # interactions, directions, attention and FFN
    assert "gamma/interaction1.branch3_to_branch2.attention" in gammas
    # after one step of AdamW in the warm-up: 1% to a sixtieth more of the learning rate 8e-4
    assert all(0 < values[1] < 2e-5 for values in gammas.values())
    assert all(values[3] > values[1] for values in gammas.values())
    assert (
        history["images_per_s"].keys() == history["data_wait"].keys() == history["memory_mb"].keys() == {1, 3}
    )
    assert history["images_per_s"][3] > 0
    assert 100 < history["memory_mb"][3] < 20_000


def test_files_of_every_evaluation(run: tuple[Path, dict[str, float]]) -> None:
    """Pictures of the same images each time, apart for the average of the weights, as are its detections."""
    for folder in (run[0], run[0] / "ema"):
        pictures = [path.relative_to(folder / "predictions") for path in folder.glob("predictions/*/*.jpg")]
        assert len(pictures) == 4
        assert {path.parts[0] for path in pictures} == {"0000001", "0000004"}
        assert len({path.parts[1] for path in pictures}) == 2
    plain, average = (
        json.loads((run[0] / f / "coco_instances_results.json").read_text()) for f in ("", "ema")
    )
    assert plain and average and plain != average


class _Blank:
    def draw(self, image: np.ndarray, output: object) -> np.ndarray:
        return image


def test_pictures_of_one_name(tmp_path: Path) -> None:
    """Images in two folders: neither picture overwrites the other, and each evaluation names them alike."""
    for folder in "ab":
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / "same.png"), np.zeros((8, 8, 3), np.uint8))
    inputs = [{"file_name": str(tmp_path / folder / "same.png")} for folder in "ab"]
    pictures = Pictures(cast(Renderer, _Blank()), tmp_path / "out", total=2, number=2)
    for _ in range(2):
        pictures.reset()
        pictures.process(inputs, [{}, {}])
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["same-2.jpg", "same.jpg"]


def test_tensorboard_and_wandb_have_it_all(run: tuple[Path, dict[str, float]]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run[0]), size_guidance={"images": 0}).Reload()
    scalars = set(read_metrics(run[0])) - {"eta_seconds"}
    assert scalars <= set(events.Tags()["scalars"])
    assert len(events.Tags()["images"]) == 4
    (record,) = run[0].glob("wandb/offline-run-*/run-*.wandb")
    content = record.read_bytes()
    assert all(name.encode() in content for name in ("grad_norm/branch1", "predictions/", "bbox/AP50"))
    assert (run[0] / "wandb-id.txt").read_text() in record.name


def test_curves(run: tuple[Path, dict[str, float]], tmp_path: Path) -> None:
    history = read_metrics(run[0])
    panels = draw({"a": history, "b": history}, tmp_path / "new/curves.png", smooth=2)
    assert panels[:5] == ["losses", "results", "learning rates", "gradient norms", "gammas"]
    assert (tmp_path / "new/curves.png").stat().st_size > 10_000


def test_metrics_that_were_cut_off(tmp_path: Path) -> None:
    """The reader leaves a half line out; a run that goes on takes it away, with what it does again."""
    path = tmp_path / "metrics.json"
    lines = [json.dumps({"iteration": i, "total_loss": 1.0}) + "\n" for i in (1, 3, 5)]
    path.write_text("".join(lines) + '{"iteration": 7, "tot')
    assert read_metrics(tmp_path) == {"total_loss": {1: 1.0, 3: 1.0, 5: 1.0}}
    begin_metrics(path, 4)
    assert path.read_text() == "".join(lines[:2])
    begin_metrics(path, 0)
    assert not path.exists()
    assert (tmp_path / "metrics.1.json").read_text() == "".join(lines[:2])


@pytest.mark.parametrize(
    "damage",
    [
        b"\xff\xfe\x00binary",
        b"[1, 2]",
        b'{"loss": 1}',
        b'{"iteration": "x"}',
        b'{"iteration": 3, "lo',
        b"[" * 9999,
    ],
)
def test_damaged_metrics(tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """A run is resumed all the same; the file as it was is kept, and named."""
    path = tmp_path / "metrics.json"
    lines = [json.dumps({"iteration": i, "total_loss": 1.0}).encode() for i in (1, 3, 5)]
    content = b"\n".join([lines[0], damage, *lines[1:]]) + b"\n"
    path.write_bytes(content)
    begin_metrics(path, 4)
    assert f"{path} is damaged: 1 of its 4 lines are no records" in caplog.text
    assert path.read_bytes() == b"\n".join(lines[:2]) + b"\n"
    assert (tmp_path / "metrics.1.json").read_bytes() == content
    assert read_metrics(tmp_path) == {"total_loss": {1: 1.0, 3: 1.0}}


@pytest.mark.parametrize("content", ["", "[1, 2]\n", '{"loss": 1}\n'])
def test_what_is_no_file_of_metrics(tmp_path: Path, content: str) -> None:
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(ValueError, match=r"no file of metrics|holds no metrics"):
        read_metrics(tmp_path)


def test_unknown_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"train\.log is 'mlflow': use one of tensorboard, wandb"):
        train(tiny_config(tmp_path, monkeypatch, "train.log=mlflow"))


class Clock:
    """Time that passes when told to."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Waiting(HookBase):
    """Lets every step take a second, and claims that part of it was spent waiting."""

    def __init__(self, clock: Clock, share: float) -> None:
        self.clock, self.share = clock, share

    def after_backward(self) -> None:
        self.clock.now += 1.0
        self.trainer.storage.put_scalar("data_time", self.share)


@pytest.mark.parametrize(("share", "warnings"), [(0.09, 0), (0.11, 1)])
def test_waiting_for_data_is_noticed(
    share: float, warnings: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """More than a tenth of the time: once, and not in the first period, in which workers start."""
    clock = Clock()
    monkeypatch.setattr(monitoring, "time", clock)
    monkeypatch.setattr(Trainer, "_write_metrics", lambda *arguments: None)
    model = nn.Linear(1, 1)

    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = model

        def forward(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": self.linear(batch).sum()}

    loss = Loss()
    trainer = Trainer(loss, [torch.ones(1, 1)] * 8, torch.optim.SGD(loss.parameters(), lr=0.1), seed=0)
    trainer.register_hooks([Waiting(clock, share), Throughput(batch_size=6, period=2, device="cpu")])
    with caplog.at_level(logging.WARNING, logger="detectron2.piip"):
        trainer.train(0, 8)
    assert (
        sum("waits for data 11% of the time" in record.getMessage() for record in caplog.records) == warnings
    )
    assert trainer.storage.latest()["images_per_s"] == (6.0, 7)
    assert trainer.storage.latest()["data_wait"][0] == pytest.approx(share)
