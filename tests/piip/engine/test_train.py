"""Training: it learns, it goes on bit for bit where it stopped, and it stops when it must."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from ... import require

require.detectron2()

from detectron2.config import LazyConfig, instantiate
from detectron2.utils.events import EventStorage

from piip.detection.evaluation import summary
from piip.engine.train import Trainer, build_model, evaluate, train
from piip.numerics import autocast
from piip.weights.files.tensors import same_content

from ..tiny_config import tiny_config

FINAL = "output/model_final.pth"


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def test_a_step_lowers_the_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On one batch, again and again.

    What is trained on stays the same: anchors are drawn alike each time, and the heads see the true boxes,
    no proposals, whose share of hits would change as they improve.
    """
    only_true_boxes = "model.proposal_generator.post_nms_topk=[0,0]"
    cfg = tiny_config(tmp_path, monkeypatch, "optimizer.lr=1e-4", only_true_boxes)
    torch.manual_seed(0)
    model = build_model(cfg)
    batch = next(iter(instantiate(cfg.dataloader.train)))
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    losses = []
    with EventStorage():
        for _ in range(6):
            torch.manual_seed(0)
            loss = sum(model(batch).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("workers", [0, 2])
def test_resumes_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, workers: int
) -> None:
    """Interrupted after 3 of 4 iterations, resumed from the checkpoint after 2: same weights and optimizer.

    Drop path is on, so that the random numbers of a step matter.
    """
    overrides = [f"dataloader.train.num_workers={workers}"]
    overrides += [f"model.backbone.piip.branches.{i}.drop_path_rate=0.3" for i in range(3)]
    overrides = [f"+{o}" if "drop_path" in o else o for o in overrides]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(tiny_config(whole, monkeypatch, *overrides))

    step = Trainer.run_step

    def interrupted(trainer: Trainer) -> None:
        if trainer.iter == 3:
            raise KeyboardInterrupt
        step(trainer)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "run_step", interrupted)
        train(tiny_config(stopped, monkeypatch, *overrides))
    assert "interrupted at iteration 3: --resume continues from" in caplog.text
    assert not (stopped / FINAL).exists()
    torch.manual_seed(99)  # a new process would start elsewhere
    train(tiny_config(stopped, monkeypatch, *overrides), resume=True)

    expected, actual = load(whole / FINAL), load(stopped / FINAL)
    assert same_content(expected["model"], actual["model"])
    assert same_content(expected["trainer"], actual["trainer"])
    initial = load(whole / "output/model_0000001.pth")["model"]
    assert not same_content(expected["model"], initial)


def test_a_run_without_seed_keeps_the_one_it_drew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tiny_config(tmp_path, monkeypatch, "train.seed=-1", "train.max_iter=1"))
    drawn = load(tmp_path / FINAL)["trainer"]["seed"]
    train(tiny_config(tmp_path, monkeypatch, "train.seed=-1", "train.max_iter=2"), resume=True)
    assert load(tmp_path / FINAL)["trainer"]["seed"] == drawn


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        ("roi_heads.mask_head.predictor", "loss is not finite, .*loss_mask nan"),
        ("proposal_generator.rpn_head.objectness_logits", "Predicted boxes or scores contain Inf/NaN"),
    ],
)
def test_nan_stops_and_keeps_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layer: str, reason: str
) -> None:
    cfg = tiny_config(tmp_path, monkeypatch)
    step = Trainer.run_step

    def poisoned(trainer: Trainer) -> None:
        if trainer.iter == 3:
            with torch.no_grad():
                trainer.model.get_submodule(layer).bias.fill_(torch.nan)
        step(trainer)

    monkeypatch.setattr(Trainer, "run_step", poisoned)
    with pytest.raises(FloatingPointError, match=rf"diverged at iteration 3 \({reason}.*stops") as caught:
        train(cfg)
    assert "\n" not in str(caught.value)
    output = tmp_path / "output"
    assert (output / "last_checkpoint").read_text() == "model_0000001.pth"
    assert not (output / "model_final.pth").exists()
    assert all(tensor.isfinite().all() for tensor in load(output / "model_0000001.pth")["model"].values())


class Regression(nn.Module):
    """Loss of one matrix product, which autocast runs in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.seen: torch.dtype | None = None

    def forward(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        output = self.linear(batch)
        self.seen = output.dtype
        return {"loss": output.square().mean()}


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_precision(precision: str, dtype: torch.dtype) -> None:
    """Matrix products in the precision asked for; weights and their updates stay float32."""
    model = Regression()
    before = model.linear.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(model, [torch.ones(2, 4)], optimizer, seed=0, precision=precision)
    trainer.train(0, 1)
    assert model.seen == dtype
    assert model.linear.weight.dtype == torch.float32
    assert not torch.equal(model.linear.weight, before)


def test_unknown_precision() -> None:
    with pytest.raises(ValueError, match="precision 'float8' is not supported: use one of float32, bfloat16"):
        autocast("cpu", "float8")


@pytest.mark.slow
def test_bfloat16_training_and_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole detector trains and evaluates in bfloat16 on the CPU."""
    cfg = tiny_config(tmp_path, monkeypatch, "train.precision=bfloat16", "train.eval_precision=bfloat16")
    train(cfg)
    weights = load(tmp_path / FINAL)["model"]
    assert all(tensor.dtype == torch.float32 for tensor in weights.values() if tensor.is_floating_point())


def test_evaluation_prints_ap_by_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    cfg = tiny_config(tmp_path, monkeypatch)
    results = evaluate(cfg, build_model(cfg))
    assert {"AP", "AP50", "APs", "APm", "APl"} <= results["bbox"].keys() & results["segm"].keys()
    assert summary(results) in caplog.text


def test_summary() -> None:
    metrics = {"AP": 41.26, "AP50": 60.0, "AP75": 1.0, "APs": 0.0, "APm": 100.0, "APl": float("nan")}
    assert summary({"bbox": metrics}).splitlines() == [
        "            AP    AP50    AP75   small  medium   large",
        "box       41.3    60.0     1.0     0.0   100.0     n/a",
    ]


def test_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        ValueError, match=r"train\.device is 'cuda' but PyTorch finds no GPU: add train\.device=cpu"
    ):
        build_model(tiny_config(tmp_path, monkeypatch, "train.device=cuda"))


def test_float16_switch_of_detectron2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ValueError, match=r"train\.amp\.enabled .* is not supported: set train\.precision='bfloat16'"
    ):
        train(tiny_config(tmp_path, monkeypatch, "train.amp.enabled=True"))


def test_quick_config_loads_twice() -> None:
    """Registering its datasets a second time is no error."""
    from ..tiny_config import QUICK_CONFIG

    assert LazyConfig.load(str(QUICK_CONFIG)).keys() == LazyConfig.load(str(QUICK_CONFIG)).keys()
