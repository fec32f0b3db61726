"""Branches get their weights when training begins from nothing, and at no other time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from ... import require

require.detectron2()

from detectron2.config import LazyCall as L
from omegaconf import DictConfig

from piip.branches import Pretrained
from piip.engine import start
from piip.engine import train as training

from ..tiny_config import tiny_config


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What was loaded, a list of branches for each time."""
    calls: list[list[str]] = []
    load = start.load_pretrained

    def recorded(model: nn.Module) -> list[str]:
        calls.append(load(model))
        return calls[-1]

    monkeypatch.setattr(start, "load_pretrained", recorded)
    return calls


def config(folder: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> DictConfig:
    """The tiny configuration, its first branch starting from a file."""
    cfg = tiny_config(
        folder, monkeypatch, "train.max_iter=2", "train.seed=0", "train.eval_period=0", *overrides
    )
    branch = training.build_model(cfg).backbone.net.piip.branches[0]
    weights = {key: torch.full_like(value, 0.01) for key, value in branch.state_dict().items()}
    torch.save(weights, folder / "branch.pth")
    cfg.model.backbone.piip.branches[0].pretrained = L(Pretrained)(
        source=str(folder / "branch.pth"), family="deit3"
    )
    return cfg


def test_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loads: list[list[str]]) -> None:
    """From nothing: loaded. Resumed, or from a whole detector: not even looked for."""
    cfg = config(tmp_path, monkeypatch)
    training.train(cfg)
    assert loads == [["backbone.net.piip.branches.0"]]
    key = "backbone.net.piip.branches.0.blocks.0.mlp.fc1.weight"
    saved = torch.load(tmp_path / "output" / "model_final.pth", weights_only=True)["model"][key]
    assert (saved - 0.01).abs().max() < 0.01  # two small steps away from the file

    (tmp_path / "branch.pth").unlink()
    cfg = config(tmp_path, monkeypatch, "train.max_iter=3")
    (tmp_path / "branch.pth").unlink()
    training.train(cfg, resume=True)
    final = tmp_path / "output" / "model_final.pth"
    cfg.train.output_dir, cfg.train.init_checkpoint = str(tmp_path / "other"), str(final)
    training.train(cfg)
    assert len(loads) == 1
