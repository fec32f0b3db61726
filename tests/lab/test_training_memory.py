"""The memory of a sharded training: the formula against closed forms, and against what two processes take."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from .. import require

require.detectron2()

from lab.training_memory import activation_bytes, training_memory
from piip import PIIP, InteractionConfig
from piip.engine.distributed.sharding import shard
from piip.flops import build_on_meta

from ..piip.engine.processes import in_processes
from ..piip.models import tiny_branch

BATCH = 4


class Backboned(nn.Module):
    """A PIIP and nothing else, as sharding takes it."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = PIIP(
            [tiny_branch(512, 6), tiny_branch(256, 6)],
            (64, 96),
            num_interactions=2,
            interaction=InteractionConfig(num_heads=4, drop_path_rate=0),
            grad_checkpointing=True,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.backbone(x).square().mean()


def predicted(processes: int) -> Any:
    with build_on_meta():
        model, images = Backboned(), torch.empty(BATCH, 3, 96, 96)
    activations = activation_bytes(model, images, "float32")
    return training_memory(model, activations, processes, precision="float32")


def resident(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def measured() -> int:
    """What the second step of a training adds to this process's memory at its worst moment, in bytes."""
    # memory that is freed goes back at once, instead of staying with the process for its next tensors
    ctypes.CDLL(None).mallopt(-3, 65536)  # M_MMAP_THRESHOLD
    before = resident("VmRSS")
    model = shard(Backboned(), torch.device("cpu"), "float32")
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for step in range(2):
        if step:
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is resident now
        optimizer.zero_grad()
        model(torch.randn(BATCH, 3, 96, 96)).backward()
        optimizer.step()
    return resident("VmHWM") - before


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells peaks of memory")
def test_two_processes_take_what_was_computed() -> None:
    """Within a fifth, from below: the sum counts all gradients and all activations at one moment."""
    expected = predicted(2).total
    for taken in in_processes(2, measured):
        assert 0.8 < taken / expected < 1.05


def test_shards_and_what_is_gathered() -> None:
    """Closed forms: 16 bytes a number are shared by all, the largest group comes in the type of training."""
    with build_on_meta():
        model = Backboned()
    numbers = sum(parameter.numel() for parameter in model.parameters())
    half, whole = (training_memory(model, 0, 4, precision=p) for p in ("bfloat16", "float32"))
    for memory in (half, whole):
        assert memory.weights + memory.gradients + memory.optimizer == 16 * numbers / 4
    piip = model.backbone
    parts = [block for branch in piip.branches for block in branch.blocks] + list(piip.interactions)
    largest = max(sum(p.numel() for p in part.parameters()) for part in parts)
    assert whole.gathered - half.gathered == 3 * 2 * largest


def test_a_model_without_piip() -> None:
    with pytest.raises(ValueError, match="there is no PIIP in this model"):
        training_memory(nn.Linear(1, 1), 0, 8)


def test_activations_of_a_checkpointed_branch() -> None:
    """One branch: the maps that enter its blocks, and what one block keeps; without checkpointing, of all."""

    def branch_bytes(checkpointing: bool, depth: int) -> int:
        with build_on_meta():
            piip = PIIP(
                [tiny_branch(64, depth)],
                (64,),
                num_interactions=0,
                merge="identity",
                grad_checkpointing=checkpointing,
            )
            images = torch.empty(2, 3, 64, 64)
        return activation_bytes(piip, images, "float32")

    one_map = 2 * 8 * 8 * 64 * 4  # images, rows, columns, channels, bytes
    assert branch_bytes(True, 5) - branch_bytes(True, 4) == one_map
    assert branch_bytes(False, 5) - branch_bytes(False, 4) > 8 * one_map
