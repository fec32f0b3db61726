"""The accounting of the published costs of PIIP-LLaVA's vision towers, in closed form.

Their counter was told one stride a branch, that after its first stage, and charges the sampling of all
interactions for as many queries; of a ConvNeXt, whose maps grow coarser, that is too many. It leaves out the
norms of timm and the class token in the products of attention. It ran with 12 interactions for the 13B
models, too, which have 24.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

from torch import nn

from piip.backbone import PIIP, Stage
from piip.branches import CLIPBranch, ConvNeXtBranch
from piip.branches.clip import CLIPLayer
from piip.flops.published import extend, injector_cost
from piip.flops.report import Part, Report
from piip.interaction import Interaction, InteractionUnit

__all__ = ["published_tower_cost"]


def _run(stages: Sequence[Stage]) -> list[int]:
    """Numbers of the blocks that are run."""
    return [block for first, last in stages for block in range(first, last + 1)]


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _clip(branch: CLIPBranch, stages: Sequence[Stage], size: int) -> Part:
    patches, dim = (size // branch.patch_size) ** 2, branch.hidden_size
    tokens = patches + branch.use_class_token
    part = Part()
    part.add(("patch_embed",), macs=3 * branch.patch_size**2 * dim * patches + 2 * tokens * dim)
    for block in (branch.blocks[i] for i in _run(stages)):
        assert isinstance(block, CLIPLayer)
        part.add(("attention_projections",), macs=2 * tokens * dim + 4 * tokens * dim**2)
        part.add(("attention_products",), macs=2 * patches**2 * dim)
        part.add(("mlp",), macs=2 * tokens * dim + 2 * tokens * dim * block.mlp.fc1.out_features)
    return part


def _convnext(branch: ConvNeXtBranch, stages: Sequence[Stage], size: int) -> Part:
    part = Part()
    dim, stride = branch.channels(0), branch.stride(0)
    part.add(("stem",), macs=(3 * stride**2 + 1) * dim * (size // stride) ** 2)
    run = _run(stages)
    for before, block in pairwise([run[0], *run]):
        dim, tokens = branch.channels(block), (size // branch.stride(block)) ** 2
        if branch.stride(before) != branch.stride(block):
            part.add(("downsampling",), macs=(4 * branch.channels(before) + 1) * dim * tokens)
        else:
            part.add(("blocks",), macs=(7 * 7 + 1) * dim * tokens + 8 * dim**2 * tokens)
    return part


def published_tower_cost(piip: PIIP) -> Report:
    """Count a tower, a PIIP of two branches that are not merged, as its published costs do.

    Raises:
        ValueError: it is none, or has a branch of another family than CLIP and ConvNeXt.
    """
    total = Part()
    for number, (branch, stages, size) in enumerate(
        zip(piip.branches, piip.stages, piip.image_sizes, strict=True), start=1
    ):
        if isinstance(branch, CLIPBranch):
            part = _clip(branch, stages, size)
        elif isinstance(branch, ConvNeXtBranch):
            part = _convnext(branch, stages, size)
        else:
            raise ValueError(f"branch {number} is a {type(branch).__name__}: towers have CLIP and ConvNeXt")
        extend(total, (f"branch{number}",), part)
        total.add((f"branch{number}",), params=_parameters(branch))
    if len(piip.branches) != 2:
        raise ValueError(f"a tower of {len(piip.branches)} branches: expected 2")

    def tokens(stage: int) -> list[int]:
        strides = piip.stage_strides(stage)
        return [(size // stride) ** 2 for size, stride in zip(piip.image_sizes, strides, strict=True)]

    charged = tokens(0)
    for stage, interaction in enumerate(cast("list[Interaction]", list(piip.interactions))):
        (unit,) = interaction.units.values()
        assert isinstance(unit, InteractionUnit)
        dims, maps = piip.stage_channels(stage), tokens(stage)
        for injector, query, feat in ((unit.large_to_small, 0, 1), (unit.small_to_large, 1, 0)):
            if injector is not None:
                cost = injector_cost(
                    injector, maps[query], dims[query], maps[feat], dims[feat], sampled=charged[query]
                )
                extend(total, ("interactions",), cost)
        total.add(("interactions",), params=_parameters(interaction))
    return Report("published", (piip.input_size,) * 2, total)
