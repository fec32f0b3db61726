"""Small models for tests: three branches whose every parameter is visible."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from piip import PIIP, InteractionConfig
from piip.branches import BEiTBranch, ConvNeXtBranch, ViTBranch

DIMS = (64, 48, 32)  # merge normalises 64 channels in 32 groups
TINY_INTERACTION = InteractionConfig(num_heads=4)


def tiny_branch(dim: int = 64, depth: int = 2, **options: Any) -> ViTBranch:
    options = {"num_heads": 4, "patch_size": 8, "mlp_ratio": 2, "pretrain_image_size": 32, **options}
    return ViTBranch(embed_dim=dim, depth=depth, **options)


def tiny_piip(
    dims: tuple[int, ...] = DIMS, image_sizes: tuple[int, ...] | None = None, **options: Any
) -> PIIP:
    """Branches of 2 blocks, patches of 8 px, the images 32, 48, 64, ... px."""
    sizes = image_sizes or tuple(range(32, 32 + 16 * len(dims), 16))
    depth = options.pop("depth", 2)
    branch_options = options.pop("branch", {})
    branches = [tiny_branch(dim, depth, **branch_options) for dim in dims]
    return PIIP(branches, sizes, **{"num_interactions": 2, "interaction": TINY_INTERACTION, **options})


def beit_piip() -> PIIP:
    sizes = {"embed_dim": 64, "depth": 2, "num_heads": 4, "patch_size": 8, "mlp_ratio": 2}
    branches = [BEiTBranch(window_sizes=4, **sizes), tiny_branch(48)]
    return PIIP(branches, (32, 48), num_interactions=2, interaction=InteractionConfig(num_heads=4))


def convnext_piip() -> PIIP:
    branches = [
        ConvNeXtBranch(dims=(32, 32, 64, 64), depths=(1, 1, 1, 1), layer_scale=1.0),
        ConvNeXtBranch(dims=(32, 32, 32, 32), depths=(1, 1, 1, 1), layer_scale=1.0),
    ]
    interaction = InteractionConfig(num_heads=4)
    return PIIP(branches, (64, 96), num_interactions=2, interaction=interaction, merge="single_conv")


KINDS = {
    "windows": lambda: tiny_piip(branch={"window_sizes": 3}),
    "no layer scale": lambda: tiny_piip(branch={"layer_scale": None}),
    "regular attention": lambda: tiny_piip(interaction=InteractionConfig(attention="regular", num_heads=4)),
    "no ffn, norm, projection": lambda: tiny_piip(
        interaction=InteractionConfig(num_heads=4, ffn=False, norm=False, projection=False)
    ),
    "linear merge": lambda: tiny_piip(dims=(64, 32), merge="linear"),
    "identity merge": lambda: tiny_piip(dims=(64, 64), merge="identity"),
    "beit": beit_piip,
    "convnext": convnext_piip,
}
"""A model of each kind that computes anything of its own, by name."""


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter a value that shows, zero-initialised gammas included."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.3
        parameter.copy_(parameter + scale * noise)
    return model
