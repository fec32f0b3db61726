"""Tables of published tensor names and what they are called here, read in both directions.

Shapes are written with symbols, such as ``D`` for the width of a branch;
:mod:`piip.weights.converters.backbone` says what they stand for where.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

_WILDCARD = re.compile(r"#|\{([^}]*)\}")


def _regex(template: str) -> re.Pattern[str]:
    parts, end = [], 0
    for wildcard in _WILDCARD.finditer(template):
        parts += [re.escape(template[end : wildcard.start()]), f"({wildcard[1] or '[0-9]+'})"]
        end = wildcard.end()
    return re.compile("".join(parts) + re.escape(template[end:]))


def _translate(name: str, regex: re.Pattern[str], template: str) -> str | None:
    match = regex.fullmatch(name)
    if match is None:
        return None
    values = iter(match.groups())
    return _WILDCARD.sub(lambda _: next(values), template)


@dataclass(frozen=True)
class Rule:
    """A published name, the name here (empty where nothing is kept) and the shape.

    Both names are templates with the same wildcards in the same order: ``#`` is a number, ``{a|b}`` a choice.
    """

    published: str
    ours: str
    shape: str

    @cached_property
    def _published_regex(self) -> re.Pattern[str]:
        return _regex(self.published)

    @cached_property
    def _our_regex(self) -> re.Pattern[str]:
        return _regex(self.ours)

    def to_ours(self, name: str) -> str | None:
        """The name here (empty for what is not kept), or None where the rule is about another name."""
        return _translate(name, self._published_regex, self.ours)

    def to_published(self, name: str) -> str | None:
        """The way back."""
        return _translate(name, self._our_regex, self.published) if self.ours else None


def _rules(*rows: tuple[str, str, str]) -> tuple[Rule, ...]:
    return tuple(Rule(published, ours or published, shape) for published, ours, shape in rows)


_PATCHES = _rules(("patch_embed.proj.weight", "", "D,3,P,P"), ("patch_embed.proj.bias", "", "D"))
_BLOCK = _rules(
    ("blocks.#.norm{1|2}.{weight|bias}", "", "D"),
    ("blocks.#.attn.qkv.weight", "", "3D,D"),
    ("blocks.#.attn.proj.weight", "", "D,D"),
    ("blocks.#.attn.proj.bias", "", "D"),
    ("blocks.#.mlp.fc1.weight", "", "M,D"),
    ("blocks.#.mlp.fc1.bias", "", "M"),
    ("blocks.#.mlp.fc2.weight", "", "D,M"),
    ("blocks.#.mlp.fc2.bias", "", "D"),
)
_POSITION = _rules(("pos_embed", "", "1,T,D"), ("blocks.#.attn.qkv.bias", "", "3D"))
_GAMMA = _rules(("blocks.#.gamma_{1|2}", "blocks.#.ls{1|2}.gamma", "D"))
_DEIT = (*_PATCHES, *_POSITION, *_BLOCK, *_GAMMA)
_INTERN = (
    *_PATCHES,
    *_POSITION,
    *_BLOCK,
    *_rules(
        ("blocks.#.ls{1|2}.gamma", "", "D"),
        ("blocks.#.attn.{q|k}_norm.{weight|bias}", "", "D"),
    ),
)
_BEIT = (
    *_PATCHES,
    *_BLOCK,
    *_GAMMA,
    *_rules(
        ("blocks.#.attn.{q|v}_bias", "", "D"),
        ("blocks.#.attn.relative_position_bias_table", "", "R,H"),
    ),
    Rule("blocks.#.attn.relative_position_index", "", "N,N"),  # a constant, computed here
)
_EMBED = "visual_embed.patch_embed"
_UNI_PERCEIVER = _rules(
    (f"{_EMBED}.proj.weight", "patch_embed.proj.weight", "D,3,P,P"),
    (f"{_EMBED}.proj.bias", "patch_embed.proj.bias", "D"),
    (f"{_EMBED}.spatial_pos_embed.weight", "pos_embed", "T,D"),
    (f"{_EMBED}.temporal_pos_embed.weight", "temporal_embed", "8,D"),
    ("visual_embed.embeddings_norm.{weight|bias}", "embed_norm.{weight|bias}", "D"),
    ("layers.#.gamma_{1|2}", "blocks.#.ls{1|2}.gamma", "D"),
    ("layers.#.norm{1|2}.{weight|bias}", "blocks.#.norm{1|2}.{weight|bias}", "D"),
    ("layers.#.self_attn.in_proj.weight", "blocks.#.attn.qkv.weight", "3D,D"),
    ("layers.#.self_attn.in_proj.bias", "blocks.#.attn.qkv.bias", "3D"),
    ("layers.#.self_attn.out_proj.weight", "blocks.#.attn.proj.weight", "D,D"),
    ("layers.#.self_attn.out_proj.bias", "blocks.#.attn.proj.bias", "D"),
    ("layers.#.linear1.weight", "blocks.#.mlp.fc1.weight", "M,D"),
    ("layers.#.linear1.bias", "blocks.#.mlp.fc1.bias", "M"),
    ("layers.#.linear2.weight", "blocks.#.mlp.fc2.weight", "D,M"),
    ("layers.#.linear2.bias", "blocks.#.mlp.fc2.bias", "D"),
)
CONVNEXT_STEM = _rules(  # names as in timm
    ("embeddings.patch_embeddings.weight", "stem.0.weight", "D,3,P,P"),
    ("embeddings.patch_embeddings.bias", "stem.0.bias", "D"),
    ("embeddings.layernorm.{weight|bias}", "stem.1.{weight|bias}", "D"),
)
CONVNEXT_STAGE = _rules(  # C: width of the stage before
    ("downsampling_layer.0.{weight|bias}", "downsample.0.{weight|bias}", "C"),
    ("downsampling_layer.1.weight", "downsample.1.weight", "D,C,2,2"),
    ("downsampling_layer.1.bias", "downsample.1.bias", "D"),
    ("layers.#.layer_scale_parameter", "blocks.#.gamma", "D"),
    ("layers.#.dwconv.weight", "blocks.#.conv_dw.weight", "D,1,7,7"),
    ("layers.#.dwconv.bias", "blocks.#.conv_dw.bias", "D"),
    ("layers.#.layernorm.{weight|bias}", "blocks.#.norm.{weight|bias}", "D"),
    ("layers.#.pwconv1.weight", "blocks.#.mlp.fc1.weight", "4D,D"),
    ("layers.#.pwconv1.bias", "blocks.#.mlp.fc1.bias", "4D"),
    ("layers.#.pwconv2.weight", "blocks.#.mlp.fc2.weight", "D,4D"),
    ("layers.#.pwconv2.bias", "blocks.#.mlp.fc2.bias", "D"),
)
CONVNEXT_NORM = _rules(("layernorm.{weight|bias}", "norm.{weight|bias}", "D"))
FAMILIES = {"deit": _DEIT, "intern": _INTERN, "beit": _BEIT, "uni_perceiver": _UNI_PERCEIVER}
ANY_FAMILY = tuple(dict.fromkeys(rule for rules in FAMILIES.values() for rule in rules))

INJECTOR = _rules(  # Q: width of the branch that looks, F: width of the features as the attention gets them
    ("ca_gamma", "", "Q"),
    ("cffn_gamma", "", "Q"),
    ("{query|ffn}_norm.{weight|bias}", "", "Q"),
    ("feat_norm.{weight|bias}", "", "F"),
    ("attn.sampling_offsets.weight", "", "2A,Q"),
    ("attn.sampling_offsets.bias", "", "2A"),
    ("attn.attention_weights.weight", "", "A,Q"),
    ("attn.attention_weights.bias", "", "A"),
    ("attn.value_proj.weight", "", "V,F"),
    ("attn.value_proj.bias", "", "V"),
    ("attn.output_proj.weight", "", "Q,V"),
    ("attn.output_proj.bias", "", "Q"),
    ("attn.wq.weight", "attn.q_proj.weight", "Q,Q"),
    ("attn.w{k|v}.weight", "attn.{k|v}_proj.weight", "Q,F"),
    ("attn.proj.weight", "", "Q,Q"),
    ("attn.proj.bias", "", "Q"),
    ("ffn.fc1.weight", "", "H,Q"),
    ("ffn.fc1.bias", "", "H"),
    ("ffn.dwconv.dwconv.weight", "ffn.dwconv.weight", "H,1,3,3"),
    ("ffn.dwconv.dwconv.bias", "ffn.dwconv.bias", "H"),
    ("ffn.fc2.weight", "", "Q,H"),
    ("ffn.fc2.bias", "", "Q"),
)
PROJECTION = _rules(("weight", "", "Q,O"), ("bias", "", "Q"))
WEIGHT = _rules(("w#", "weights.#", ""))
MERGE = _rules(  # D: width of the branch, D1: width of branch 1
    ("0.weight", "", "D1,D,3,3|D"),
    ("0.bias", "", "D"),
    ("{1|4}.{weight|bias}", "", "D1"),
    ("2.weight", "", "D1,D"),
    ("2.bias", "", "D1"),
    ("3.weight", "", "D1,D1,3,3"),
)
F1 = _rules(
    ("{0|3}.weight", "", "D1,D1,2,2"),
    ("{0|3}.bias", "", "D1"),
    ("1.{weight|bias}", "", "D1"),
)
F2 = _rules(("0.weight", "weight", "D1,D1,2,2"), ("0.bias", "bias", "D1"))
