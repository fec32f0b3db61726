"""Several processes train as one does: data parallel, sharded, from checkpoint to checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ... import require

require.detectron2()

from detectron2.config import instantiate
from safetensors.torch import load_file

from piip.engine.checkpoint import Checkpointer
from piip.engine.config import load_config
from piip.engine.model import build_model
from piip.engine.sharded_checkpoint import is_sharded_checkpoint, whole_state
from piip.engine.train import Trainer, train
from piip.quick.shapes import write_split

from ..tiny_config import QUICK_SEGMENTOR
from .processes import environment, in_processes

# Every image counts alike in the loss, so a mean over processes or parts is the mean over the batch.
BATCH = 4
SETTINGS = (
    "train.max_iter=4",
    "train.checkpointer.period=2",
    f"dataloader.train.total_batch_size={BATCH}",
    "model.heads.decode_head.dropout=0",
    "model.heads.auxiliary_head.dropout=0",
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
    """Train the quick segmentor; returns its losses by iteration, and gradient norms where they are clipped."""
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "overrides"),
    [
        (2, ()),
        (4, ()),
        (2, ("train.parallel=fsdp",)),
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
