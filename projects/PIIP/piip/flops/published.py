"""The accounting of the published cost tables, in closed form.

Those tables were not counted on the detector: the counted model merges its branches with GroupNorm, linear,
GroupNorm, ends in a norm and a 1000-way head, has position embeddings of the size of its maps and no pyramid;
windows are not padded, and deformable attention is charged the full width although its values have half of
it. Classifiers with a head a branch were counted with those heads; their class tokens take part in everything
but the products of attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import nn

from ..backbone import PIIP
from ..branches import ViTBranch
from ..cross_attention import DeformableCrossAttention, RegularCrossAttention
from ..interaction import Injector, Interaction, InteractionUnit
from .actual import (
    check_input_size,
    padded_tokens,
    piip_locator,
    run_blocks,
    token_shapes,
    transformer_part,
)
from .report import Part, Report

__all__ = ["extend", "injector_cost", "published_cost"]

_CLASSES = 1000

Shape = tuple[int, int]


def _branch(branch: ViTBranch, stages: Sequence[Shape], shape: Shape) -> Part:
    patches, dim = shape[0] * shape[1], branch.embed_dim
    tokens = patches + (branch.cls_token is not None)
    part = Part()
    part.add(("patch_embed",), macs=(3 * branch.patch_size**2 + 1) * dim * patches)  # 1: the bias
    for block in run_blocks(branch, stages):
        norm = 2 * tokens * dim if isinstance(block.norm1, nn.LayerNorm) else 0  # RMSNorm was not counted
        window = block.attn.window_size
        projected = tokens
        if window is not None and branch.num_prefix_tokens:
            # padded windows are counted in the published class of AugReg, DINOv2, MAE and InternViT only
            projected = padded_tokens(shape, window)
        attended = patches if window is None else window**2
        part.add(("attention_projections",), macs=norm + 3 * projected * dim**2 + tokens * dim**2)
        part.add(("attention_products",), macs=2 * patches * attended * dim)
        part.add(("mlp",), macs=norm + 2 * tokens * dim * block.mlp.fc1.out_features)
    for name, parameter in branch.named_parameters():
        params = parameter.numel()
        if name == "pos_embed":
            params = (patches + branch.num_prefix_tokens) * dim  # at the size of the map
        part.add((transformer_part(name.split("."), None),), params=params)
    return part


def injector_cost(
    injector: Injector, queries: int, dim: int, feats: int, feat_dim: int, sampled: int | None = None
) -> Part:
    """``queries`` tokens of ``dim`` channels look at ``feats`` tokens of ``feat_dim`` channels.

    ``sampled`` is for how many queries sampling is charged, None for all there are.
    """
    part = Part()
    if isinstance(injector.proj, nn.Linear):
        part.add(("projection",), macs=feats * feat_dim * dim)
        feat_dim = dim
    has_norm = isinstance(injector.query_norm, nn.LayerNorm)
    norms = 2 * (queries * dim + feats * feat_dim) if has_norm else 0
    attention = injector.attn
    if isinstance(attention, DeformableCrossAttention):
        points = attention.num_heads * attention.num_points
        value_dim = attention.value_proj.out_features
        macs = 3 * points * queries * dim + feats * feat_dim * value_dim + queries * value_dim * dim
        macs += 5 * attention.num_points * (sampled or queries) * dim
        part.add(("deformable_attention",), macs=norms + macs)
    elif isinstance(attention, RegularCrossAttention):
        macs = 2 * queries * dim**2 + 2 * feats * feat_dim * dim + 2 * queries * feats * dim
        part.add(("regular_attention",), macs=norms + macs)
    else:
        raise ValueError(
            f"published accounting has no rule for {type(attention).__name__}: count the actual cost"
        )
    if injector.ffn is not None:
        hidden = injector.ffn.fc1.out_features
        macs = 2 * queries * dim * hidden + (9 + 1) * hidden * queries  # 3x3 depthwise, and its bias
        part.add(("ffn",), macs=macs + (2 * queries * dim if has_norm else 0))
    return part


def published_cost(piip: PIIP, input_size: tuple[int, int] | None = None) -> Report:
    """Count a PIIP, or a single transformer, as the published tables do.

    Args:
        piip: on any device; whatever its merge, the published one is counted.
        input_size: height and width in pixels; None for the square that it is made for.

    Raises:
        ValueError: a branch is no plain vision transformer, or the input size is not a multiple of the
            patch.
    """
    size = input_size or (piip.input_size,) * 2
    check_input_size(size, piip.stride)
    total = Part()
    shapes = token_shapes(piip, size)
    for number, (branch, shape) in enumerate(zip(piip.branches, shapes, strict=True), start=1):
        if type(branch) is not ViTBranch:  # nor for its subclasses, BEiT and Uni-Perceiver
            raise ValueError(
                f"branch {number} is a {type(branch).__name__}: published accounting has no rule for it, "
                "count the actual cost"
            )
        extend(total, (f"branch{number}",), _branch(branch, piip.stages[number - 1], shape))

    tokens = [height * width for height, width in shapes]
    dims = piip.stage_channels(piip.num_stages - 1)
    for interaction in cast("list[Interaction]", list(piip.interactions)):
        for (a, b), unit in zip(interaction.pairs, interaction.units.values(), strict=True):
            assert isinstance(unit, InteractionUnit)
            for injector, query, feat in (
                (unit.large_to_small, a - 1, b - 1),
                (unit.small_to_large, b - 1, a - 1),
            ):
                if injector is not None:
                    cost = injector_cost(injector, tokens[query], dims[query], tokens[feat], dims[feat])
                    extend(total, ("interactions", f"unit_{a}_{b}"), cost)
    locate = piip_locator(piip)
    for name, parameter in piip.named_parameters():
        if name.startswith("interactions."):
            total.add(locate(name.split("."), None), params=parameter.numel())

    if piip.merge is None:
        for j, dim in enumerate(dims, start=1):  # a norm of all tokens, a linear layer on one
            total.add(
                ("heads", f"branch{j}"),
                macs=(2 * tokens[j - 1] + _CLASSES) * dim,
                params=(2 + _CLASSES) * dim + _CLASSES,
            )
        return Report("published", size, total)
    out_dim = piip.out_channels
    merged = [branch - 1 for branch in piip.merge.branches] if len(piip.branches) > 1 else []
    for j in merged:
        # GroupNorm; the branch's weight in the sum
        total.add(("merge",), macs=2 * tokens[j] * dims[j], params=2 * dims[j] + 1)
        if j > 0:
            macs = tokens[j] * (dims[j] + 2) * out_dim  # linear, GroupNorm
            total.add(("merge",), macs=macs, params=(dims[j] + 1 + 2) * out_dim)
    grid = tokens[piip.reference]
    total.add(
        ("classification_head",),
        macs=(2 * grid + _CLASSES) * out_dim,
        params=(2 + _CLASSES) * out_dim + _CLASSES,
    )
    return Report("published", size, total)


def extend(total: Part, path: tuple[str, ...], part: Part) -> None:
    """Add the leaves of ``part`` below ``path``."""
    for below, leaf in part.walk():
        if not leaf.parts:
            total.add((*path, *below), macs=leaf.macs, params=leaf.params)
