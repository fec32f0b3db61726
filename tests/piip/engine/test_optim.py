"""Layer-wise learning-rate decay and weight decay as published."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from piip import PIIP
from piip.engine.optim import layer_decay_factors, param_groups

from ..models import TINY_INTERACTION, tiny_branch, tiny_piip


def detector(depths: tuple[int, ...]) -> nn.Module:
    with torch.device("meta"):
        branches = [tiny_branch(64, depth) for depth in depths]
        piip = PIIP(
            branches, range(32, 32 + 8 * len(depths), 8), num_interactions=2, interaction=TINY_INTERACTION
        )
        return nn.ModuleDict({"backbone": nn.ModuleDict({"bottom_up": piip}), "head": nn.Linear(4, 4)})


@pytest.mark.parametrize("depths", [(12, 12, 12), (24, 12, 12), (24, 12, 12, 12), (48, 32), (48, 32, 24)])
def test_factors(depths: tuple[int, ...]) -> None:
    """rate ** (L + 1 - id): id 0 before the blocks, floor((i + 1) * L / depth) in block i, else L + 1."""
    factors = layer_decay_factors(detector(depths), 0.85)
    last = depths[0] + 1
    for j, depth in enumerate(depths):
        root = f"backbone.bottom_up.branches.{j}"
        for name in ("pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"):
            assert factors[f"{root}.{name}"] == pytest.approx(0.85**last)
        for block in range(depth):
            layer = (block + 1) * depths[0] // depth
            assert factors[f"{root}.blocks.{block}.attn.qkv.weight"] == pytest.approx(0.85 ** (last - layer))
        assert factors[f"{root}.blocks.{depth - 1}.ls1.gamma"] == pytest.approx(0.85)
    outside = {name: f for name, f in factors.items() if ".branches." not in name}
    assert set(outside.values()) == {1.0} and "head.weight" in outside
    assert any(".interactions." in name for name in outside) and any(".merge." in name for name in outside)


def test_layers_of_48_and_32_blocks() -> None:
    """The list of floored layers: 1, 3, 4, 6, 7, 9, ..., 48."""
    factors = layer_decay_factors(detector((48, 32)), 0.5)
    exponents = [
        round(-torch.tensor(factors[f"backbone.bottom_up.branches.1.blocks.{i}.norm1.weight"]).log2().item())
        for i in range(32)
    ]
    assert [49 - e for e in exponents[:6]] == [1, 3, 4, 6, 7, 9] and 49 - exponents[-1] == 48


def test_weight_decay() -> None:
    """Vectors and biases are exempt; matrices, position embeddings and the 0-dim merge weights are not."""
    model = tiny_piip()
    name_of = {id(p): name for name, p in model.named_parameters()}
    model.merge.weights["1"].requires_grad_(False)
    groups = param_groups(model, base_lr=1e-4, weight_decay=0.05, layer_decay_rate=0.85)
    decayed = {name_of[id(p)] for g in groups if g["weight_decay"] for p in g["params"]}
    exempt = {name_of[id(p)] for g in groups if not g["weight_decay"] for p in g["params"]}
    assert {g["weight_decay"] for g in groups} == {0.0, 0.05}
    assert decayed | exempt == set(name_of.values()) - {"merge.weights.1"} and not decayed & exempt
    assert {"branches.0.pos_embed", "merge.weights.2", "branches.0.blocks.0.attn.qkv.weight"} <= decayed
    assert {"branches.0.blocks.0.norm1.weight", "branches.0.blocks.0.ls1.gamma"} <= exempt
    assert {"interactions.0.units.1_2.large_to_small.ca_gamma", "branches.0.blocks.0.attn.qkv.bias"} <= exempt
    torch.optim.AdamW(groups)


def test_learning_rates() -> None:
    groups = param_groups(tiny_piip(), base_lr=1.0, weight_decay=0.0, layer_decay_rate=0.5)
    assert sorted({g["lr"] for g in groups}) == [0.125, 0.25, 0.5, 1.0]
    assert {g["lr"] for g in param_groups(nn.Linear(2, 2), base_lr=0.1, weight_decay=0.0)} == {0.1}


def test_needs_one_piip() -> None:
    with pytest.raises(ValueError, match="needs a model with one PIIP backbone, this one has 0"):
        layer_decay_factors(nn.Linear(2, 2), 0.85)
