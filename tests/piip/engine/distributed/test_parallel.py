"""Several processes train as one does: data parallel, sharded, from checkpoint to checkpoint."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from .... import require

require.detectron2()

from detectron2.config import LazyCall as L
from omegaconf import OmegaConf
from safetensors.torch import load_file

from piip import PIIP
from piip.branches import Pretrained, ViTBranch
from piip.engine.checkpoints.checkpoint import Checkpointer
from piip.engine.checkpoints.sharded_checkpoint import is_sharded_checkpoint, whole_state
from piip.engine.config import load_config
from piip.engine.distributed import sharding
from piip.engine.distributed.sharding import (
    build_for_sharding,
    fill,
    load_pretrained_parts,
    materialise,
    shard,
)
from piip.engine.model import build_model
from piip.engine.train import Trainer, train
from piip.quick.shapes import write_split
from piip.weights.pretrained import read_source

from ...tiny_config import QUICK_SEGMENTOR, REPOSITORY
from ..processes import environment, in_processes

# Every image counts alike in the loss, so a mean over processes or parts is the mean over the batch.
BATCH = 4
SETTINGS = (
    "train.max_iter=4",
    "train.checkpointer.period=2",
    f"dataloader.train.total_batch_size={BATCH}",
    "model.heads.decode_head.dropout=0",
    "model.heads.auxiliary_head.dropout=0",
    # one block a branch: sharding costs a CPU time for each parameter
    *(f"model.backbone.piip.branches.{number}.depth=1" for number in range(3)),
    "model.backbone.piip.num_interactions=1",
)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    for split, number in (("train", 12), ("val", 2)):
        write_split(folder / "datasets/shapes", split, number, image_size=64, seed=0)
    return folder


class ImageNorm(nn.GroupNorm):
    """Looks at each image by itself: statistics of a batch norm are those of a process's images."""

    def __init__(self, dim: int) -> None:
        super().__init__(4, dim)


def run(shapes: Path, name: str, *overrides: str, resume: bool = False) -> dict[str, Any]:
    """Train the quick segmentor; returns its losses by iteration, and gradient norms if they are clipped."""
    environment(shapes)
    nn.BatchNorm2d = ImageNorm  # type: ignore[assignment, misc]
    found: dict[str, Any] = {"losses": [], "norms": []}
    write = Trainer._write_metrics

    def noted(trainer: Trainer, losses: dict[str, torch.Tensor], *rest: Any, **options: Any) -> None:
        found["losses"].append(sum(loss.item() for loss in losses.values()))
        if trainer.clip_grad_norm:
            found["norms"].append(trainer.storage.latest()["grad_norm"][0])
        write(trainer, losses, *rest, **options)

    Trainer._write_metrics = noted  # type: ignore[method-assign]
    settings = [*SETTINGS, f"train.output_dir={shapes / name}", *overrides]
    train(load_config(str(QUICK_SEGMENTOR), settings), resume=resume)
    return found


def mean_losses(results: list[dict[str, Any]]) -> torch.Tensor:
    return torch.tensor([result["losses"] for result in results]).mean(0)


@pytest.fixture(scope="module")
def alone(shapes: Path) -> torch.Tensor:
    return mean_losses(in_processes(1, run, shapes, "alone"))


@pytest.mark.parametrize(
    ("processes", "overrides"),
    [
        (2, ()),
        (4, ()),
        (1, ("train.accumulate=2",)),
        (2, ("train.parallel=fsdp", "train.accumulate=2")),
    ],
    ids=lambda value: str(value),
)
def test_the_same_losses_as_one_process(
    shapes: Path, alone: torch.Tensor, processes: int, overrides: tuple[str, ...]
) -> None:
    """Data parallel, sharded, and in parts, with the same global batch.

    Gradients are the same sums in another order, so they differ by float32 rounding, and AdamW's first steps
    have the size of the learning rate whatever that of the gradient: where one is zero up to rounding, a
    weight may go the other way. Losses of the first iteration agree to rounding, later ones to 1e-4 of them.
    """
    name = f"{processes}{len(overrides)}"
    losses = mean_losses(in_processes(processes, run, shapes, name, *overrides))
    torch.testing.assert_close(losses[0], alone[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(losses, alone, rtol=1e-4, atol=0)
    assert not torch.equal(losses[1:], losses[:1].expand(3))


def test_sharded_checkpoints_resume_on_another_number_and_become_one_file(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes train 4 iterations; one resumes after the second of them and loses the same from there.

    With an average of the weights, whose first value is the weights after the first step, and clipping.
    """
    settings = ("train.parallel=fsdp", "train.ema_decay=0.5", "train.clip_grad_norm=1.0")
    whole = in_processes(2, run, shapes, "whole", *settings)
    assert whole[0]["norms"] == whole[1]["norms"]  # the norm is that of the whole gradient
    folder = shapes / "whole"
    assert is_sharded_checkpoint(folder / "model_0000001")
    assert (folder / "last_checkpoint").read_text() == "model_final"

    (folder / "last_checkpoint").write_text("model_0000001")
    (resumed,) = in_processes(1, resume, shapes, "whole", *settings)
    # float32 rounding, as above, over two iterations
    torch.testing.assert_close(torch.tensor(resumed["losses"]), mean_losses(whole)[2:], rtol=1e-4, atol=0)

    monkeypatch.setattr(nn, "BatchNorm2d", ImageNorm)
    cfg = load_config(str(QUICK_SEGMENTOR), [*SETTINGS])
    model = build_model(cfg)
    monkeypatch.syspath_prepend(str(REPOSITORY / "tools"))
    gather = import_module("gather_checkpoint").main
    for flags, part in (([], "model"), (["--ema"], "ema")):
        target = tmp_path / f"{part}.safetensors"
        gather([str(folder / "model_final"), str(target), *flags])
        Checkpointer(model).load(str(target))  # strict: all keys, all shapes, 0-dimensional ones included
        expected = whole_state(folder / "model_final", part)
        assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    raw, average = (load_file(tmp_path / f"{part}.safetensors") for part in ("model", "ema"))
    assert any(not torch.equal(raw[name], average[name]) for name in raw)
    with pytest.raises(ValueError, match="is a folder, of a sharded training"):
        Checkpointer(model).load(str(folder / "model_final"))


def resume(shapes: Path, name: str, *overrides: str) -> dict[str, Any]:
    return run(shapes, name, *overrides, resume=True)


class Detector(nn.Module):
    """What a detector's model is to sharding: something with a backbone."""

    def __init__(self, backbone: PIIP) -> None:
        super().__init__()
        self.backbone = backbone


def branch_config(source: str | None) -> dict[str, Any]:
    pretrained = {"pretrained": L(Pretrained)(source=source, family="mae")} if source else {}
    return {"embed_dim": 512, "depth": 2, "num_heads": 4, "pretrain_image_size": 32, **pretrained}


def pretrained_parts(file: Path) -> tuple[int, dict[str, torch.Tensor]]:
    """Start a sharded branch from a file: bytes of it in memory then, and the weights, put together."""
    branch = L(ViTBranch)(**branch_config(str(file)))
    model_config = L(Detector)(backbone=L(PIIP)(branches=[branch], image_sizes=[32], num_interactions=0))
    model = build_for_sharding(OmegaConf.create({"model": model_config}, flags={"allow_objects": True}))
    assert all(parameter.is_meta for parameter in model.backbone.branches.parameters())
    assert not any(parameter.is_meta for parameter in model.backbone.merge.parameters())
    shard(model, torch.device("cpu"), "float32")
    materialise(model, torch.device("cpu"))
    files: list[dict[str, torch.Tensor]] = []

    def kept(source: str, *, mmap: bool) -> dict[str, torch.Tensor]:
        files.append(read_source(source, mmap=mmap))
        return files[-1]

    sharding.read_source = kept  # type: ignore[attr-defined]
    load_pretrained_parts(model)
    mapped = Path("/proc/self/smaps").read_text().partition(str(file))[2]
    resident = int(mapped.partition("Rss:")[2].split()[0]) * 1024
    return resident, {name: t.full_tensor() for name, t in model.backbone.branches[0].state_dict().items()}


def test_each_process_reads_its_part_of_pretrained_weights(tmp_path: Path) -> None:
    """The branch takes no memory before, and of the file each of two processes touches its part, not all."""
    branch = ViTBranch(**branch_config(None))
    file = tmp_path / "weights.pth"
    torch.save(branch.state_dict(), file)
    for resident, weights in in_processes(2, pretrained_parts, file):
        assert all(torch.equal(tensor, weights[name]) for name, tensor in branch.state_dict().items())
        # a half, and the runs of cached pages that the kernel maps around it: 0.7 in all where measured
        assert 0.4 < resident / file.stat().st_size < 0.85


def test_a_part_that_is_not_finite_is_found(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="file: weight holds NaN or infinite values"):
        fill(torch.empty(2), torch.tensor([1.0, torch.nan]), "file", "weight")


def test_sharding_needs_processes() -> None:
    with pytest.raises(ValueError, match="shards over processes, and there is one: start with torchrun"):
        shard(nn.Linear(1, 1), torch.device("cpu"), "float32")
