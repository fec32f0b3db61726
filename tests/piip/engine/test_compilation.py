"""Blocks through the compiler: one graph for blocks that are alike, whatever the batch and the size."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from ... import require

require.detectron2()

from piip.engine.compilation import SharedDropPath, compile_blocks, compiled_parts, own_checkpointing

from ..models import randomise, tiny_piip

SIZES = ((2, 3, 64, 80), (3, 3, 96, 64), (2, 3, 72, 120))


def gradients(model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(images).square().mean().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_no_graph_breaks_and_no_recompilation_from_batch_to_batch() -> None:
    """Checkpointed blocks that differ in their rate of drop path only, and the interactions after them.

    Six parts share two graphs, or three: the first block sees the map as the patch embedding lays it out.
    Other batches and sizes add none, and results are those without the compiler.
    """
    torch._dynamo.reset()
    options = {"drop_path_rate": 0.2, "drop_path_schedule": "linear"}
    model = randomise(tiny_piip((32, 32), depth=2, branch=options, grad_checkpointing=True))
    for branch in model.branches:
        branch.blocks[0].drop_path1 = copy.deepcopy(branch.blocks[1].drop_path1)
        branch.blocks[0].drop_path2 = copy.deepcopy(branch.blocks[1].drop_path2)
        branch.blocks[0].drop_path1.drop_prob = branch.blocks[0].drop_path2.drop_prob = 0.0001
    plain = copy.deepcopy(model)
    names = list(model.state_dict())
    assert len(list(compiled_parts(model))) == 6
    assert compile_blocks(model, backend="aot_eager") is model
    assert list(model.state_dict()) == names
    counters.clear()
    model.train()
    gradients(model, torch.randn(SIZES[0]))
    graphs = counters["stats"]["unique_graphs"]
    for size in SIZES[1:]:
        gradients(model, torch.randn(size))
    assert graphs <= 3
    assert counters["stats"]["unique_graphs"] == graphs
    assert not counters["graph_break"]

    images = torch.randn(SIZES[1])
    expected = gradients(plain.eval(), images)
    for name, gradient in gradients(model.eval(), images).items():
        # float32 rounding: the traced operators are not fused in the same order
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5, msg=name)
    assert not counters["graph_break"]


def test_drop_path_with_its_rate_in_a_tensor() -> None:
    """Whole samples are dropped, at the rate; those that stay are scaled up, so that the mean stays."""
    torch.manual_seed(0)
    drop = SharedDropPath(0.25)
    x = torch.ones(20_000, 2, 1)
    y = drop(x)
    assert torch.equal(y[:, 0], y[:, 1])
    torch.testing.assert_close(y.unique(), torch.tensor([0, 4 / 3]))
    assert (y == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)  # three standard deviations
    assert torch.equal(drop.eval()(x), x)
    assert not list(drop.state_dict())


def test_checkpointing_moves_into_the_blocks() -> None:
    """The same gradients, and blocks run twice: once forward, once for the gradient."""
    model = randomise(tiny_piip((32,), merge=None, num_interactions=0, grad_checkpointing=True)).train()
    runs: list[int] = []
    model.branches[0].blocks[0].norm1.register_forward_hook(lambda *_: runs.append(1))
    images = torch.randn(1, 3, 32, 32)

    def gradient() -> torch.Tensor:
        model.zero_grad()
        model.forward_branches(images)[0].square().mean().backward()
        return model.branches[0].patch_embed.proj.weight.grad.clone()

    expected = gradient()
    own_checkpointing(model)
    assert not model.branches[0].grad_checkpointing
    assert torch.equal(gradient(), expected)
    assert len(runs) == 4


def test_a_model_without_piip() -> None:
    with pytest.raises(ValueError, match="there is no PIIP in this model"):
        compile_blocks(nn.Linear(1, 1))
