"""The backbones of all released checkpoints: their names and those of :class:`piip.neck.PyramidBackbone`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from .released import ReleasedFormat
from .rules import Rule, below

__all__ = ["BACKBONE", "backbone_rules", "convert_backbone", "interaction_rules", "to_official_backbone"]


def _same(*names: str) -> list[Rule]:
    return [(name, name) for name in names]


_BLOCKS = _same("patch_embed.proj.", "blocks.{i}.norm{n}.", "blocks.{i}.attn.", "blocks.{i}.mlp.")
_GAMMA = ("blocks.{i}.gamma_{n}", "blocks.{i}.ls{n}.gamma")
_EMBED, _STAGE = "visual_embed.patch_embed", "convnext_model.encoder.stages.{i}"
_FAMILIES: dict[str, Sequence[Rule]] = {
    "deit": [*_BLOCKS, *_same("pos_embed"), _GAMMA],
    "intern": [*_BLOCKS, *_same("pos_embed", "blocks.{i}.ls{n}.gamma")],
    "beit": [*_BLOCKS, _GAMMA],
    "uni_perceiver": [
        (f"{_EMBED}.proj.", "patch_embed.proj."),
        (f"{_EMBED}.spatial_pos_embed.weight", "pos_embed"),
        (f"{_EMBED}.temporal_pos_embed.weight", "temporal_embed"),
        ("visual_embed.embeddings_norm.", "embed_norm."),
        ("layers.{i}.gamma_{n}", "blocks.{i}.ls{n}.gamma"),
        ("layers.{i}.norm{n}.", "blocks.{i}.norm{n}."),
        ("layers.{i}.self_attn.in_proj.", "blocks.{i}.attn.qkv."),
        ("layers.{i}.self_attn.out_proj.", "blocks.{i}.attn.proj."),
        ("layers.{i}.linear{n}.", "blocks.{i}.mlp.fc{n}."),
    ],
    "convnext": [  # names of Hugging Face; ours are timm's
        ("convnext_model.embeddings.patch_embeddings.", "stem.0."),
        ("convnext_model.embeddings.layernorm.", "stem.1."),
        (f"{_STAGE}.downsampling_layer.", "stages.{i}.downsample."),
        (f"{_STAGE}.layers.{{n}}.layer_scale_parameter", "stages.{i}.blocks.{n}.gamma"),
        (f"{_STAGE}.layers.{{n}}.dwconv.", "stages.{i}.blocks.{n}.conv_dw."),
        (f"{_STAGE}.layers.{{n}}.layernorm.", "stages.{i}.blocks.{n}.norm."),
        (f"{_STAGE}.layers.{{n}}.pwconv{{k}}.", "stages.{i}.blocks.{n}.mlp.fc{k}."),
        ("convnext_model.layernorm.", "norm."),
    ],
}


def interaction_rules(gamma: str = "gamma") -> list[Rule]:
    """Interactions of all stages and pairs of branches; `gamma` is how the released gates are called."""
    rules = []
    for released, ours in (("2to1", "large_to_small"), ("1to2", "small_to_large")):
        theirs = f"interactions.{{i}}.interaction_units_{{a}}{{b}}.branch{released}"
        own = f"piip.interactions.{{i}}.units.{{a}}_{{b}}.{ours}"
        rules += [
            (f"{theirs}_proj.", f"{own}.proj."),
            (f"{theirs}_injector.ca_{gamma}", f"{own}.ca_gamma"),
            (f"{theirs}_injector.cffn_{gamma}", f"{own}.cffn_gamma"),
            (f"{theirs}_injector.ffn.dwconv.dwconv.", f"{own}.ffn.dwconv."),
            *((f"{theirs}_injector.attn.w{x}.", f"{own}.attn.{x}_proj.") for x in "qkv"),
            (f"{theirs}_injector.", f"{own}."),
        ]
    return rules


def _family(state: Mapping[str, Tensor], prefix: str) -> str:
    """The family of a branch as far as its released names depend on it.

    The released "deit" and "intern" models differ in nothing but names and a class-token row of the position
    embedding, whose number of rows is no square then.

    Raises:
        ValueError: a branch has no position embedding of any kind.
    """
    if f"{prefix}stem.0.weight" in state:
        return "convnext"
    if f"{prefix}blocks.0.attn.relative_position_bias_table" in state:
        return "beit"
    if f"{prefix}temporal_embed" in state:
        return "uni_perceiver"
    if f"{prefix}pos_embed" not in state:
        raise ValueError(f"{prefix}pos_embed is missing: it tells how the released model names its tensors")
    rows = state[f"{prefix}pos_embed"].shape[-2]
    return "deit" if math.isqrt(rows) ** 2 == rows else "intern"


def backbone_rules(state: Mapping[str, Tensor], released: str = "", ours: str = "") -> list[Rule]:
    """The rules for the backbone in a state dict.

    Args:
        state: of a whole model, in released names or in ours.
        released, ours: what the backbone's names begin with, in either.
    """
    own = {m[1] for m in map(re.compile(re.escape(ours) + r"piip\.branches\.(\d+)\.").match, state) if m}
    several = f"{ours}piip.branches.1." if own else f"{released}branch"
    single = not any(key.startswith(several) for key in state)
    rules = interaction_rules()
    if own:  # a branch has one family: of several released names for one of ours, its own is right
        for j in sorted(own):
            branch, theirs = f"piip.branches.{j}.", "" if single else f"branch{int(j) + 1}."
            rules += below(theirs, branch, _FAMILIES[_family(state, ours + branch)])
    else:
        branch, theirs = ("piip.branches.0.", "") if single else ("piip.branches.{j}.", "branch{j+1}.")
        for family in _FAMILIES.values():
            rules += below(theirs, branch, family)
    up = "up" if single else "fpn"
    rules += [
        ("w{j}", "piip.merge.weights.{j}"),
        ("merge_branch{j}.", "piip.merge.transforms.{j}."),
        ("intermediate_merging_{i}_w{j}", "piip.taps.{i}.weights.{j}"),
        ("intermediate_merging_{i}_branch{j}.", "piip.taps.{i}.transforms.{j}."),
        (f"{up}1.", "pyramid.f1."),
        (f"{up}2.0.", "pyramid.f2."),
    ]
    return below(released, ours, list(dict.fromkeys(rules)))


BACKBONE = ReleasedFormat("PIIP backbone", backbone_rules)
convert_backbone, to_official_backbone = BACKBONE.convert, BACKBONE.to_official
