"""Small models for tests: three branches whose every parameter is visible."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from piip import PIIP, InteractionConfig
from piip.branches import ViTBranch

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


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter a value that shows, zero-initialised gammas included."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.3
        parameter.copy_(parameter + scale * noise)
    return model
