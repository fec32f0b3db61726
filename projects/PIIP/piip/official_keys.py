"""Names and shapes in published checkpoints, and what they are called here (SPEC 4.2).

One table, :data:`_RULES`, says for every published name how it is called here and which shape it must have.
Shapes are written with symbols, such as ``D1`` for the width of branch 1, whose values are read from the
tensors themselves: a symbol means what most of the tensors that use it say, so the odd one out is the one
reported.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

__all__ = ["convert_backbone"]

_VIT = {  # below branchJ., or at the root for a single ViT
    r"pos_embed": ("pos_embed", "1,T,D"),
    r"patch_embed\.proj\.weight": ("patch_embed.proj.weight", "D,3,P,P"),
    r"patch_embed\.proj\.bias": ("patch_embed.proj.bias", "D"),
    r"blocks\.(\d+)\.gamma_([12])": (r"blocks.\1.ls\2.gamma", "D"),
    r"blocks\.(\d+)\.ls([12])\.gamma": (r"blocks.\1.ls\2.gamma", "D"),
    r"blocks\.(\d+)\.norm([12])\.(weight|bias)": (r"blocks.\1.norm\2.\3", "D"),
    r"blocks\.(\d+)\.attn\.qkv\.weight": (r"blocks.\1.attn.qkv.weight", "3D,D"),
    r"blocks\.(\d+)\.attn\.qkv\.bias": (r"blocks.\1.attn.qkv.bias", "3D"),
    r"blocks\.(\d+)\.attn\.([qk])_norm\.(weight|bias)": (r"blocks.\1.attn.\2_norm.\3", "D"),
    r"blocks\.(\d+)\.attn\.proj\.weight": (r"blocks.\1.attn.proj.weight", "D,D"),
    r"blocks\.(\d+)\.attn\.proj\.bias": (r"blocks.\1.attn.proj.bias", "D"),
    r"blocks\.(\d+)\.mlp\.fc1\.weight": (r"blocks.\1.mlp.fc1.weight", "M,D"),
    r"blocks\.(\d+)\.mlp\.fc1\.bias": (r"blocks.\1.mlp.fc1.bias", "M"),
    r"blocks\.(\d+)\.mlp\.fc2\.weight": (r"blocks.\1.mlp.fc2.weight", "D,M"),
    r"blocks\.(\d+)\.mlp\.fc2\.bias": (r"blocks.\1.mlp.fc2.bias", "D"),
}

_INJECTOR = {  # Q: width of the branch that looks, F: width of the features as the attention gets them
    r"(ca_gamma|cffn_gamma)": (r"\1", "Q"),
    r"(query_norm|ffn_norm)\.(weight|bias)": (r"\1.\2", "Q"),
    r"feat_norm\.(weight|bias)": (r"feat_norm.\1", "F"),
    r"attn\.sampling_offsets\.weight": ("attn.sampling_offsets.weight", "2A,Q"),
    r"attn\.sampling_offsets\.bias": ("attn.sampling_offsets.bias", "2A"),
    r"attn\.attention_weights\.weight": ("attn.attention_weights.weight", "A,Q"),
    r"attn\.attention_weights\.bias": ("attn.attention_weights.bias", "A"),
    r"attn\.value_proj\.weight": ("attn.value_proj.weight", "V,F"),
    r"attn\.value_proj\.bias": ("attn.value_proj.bias", "V"),
    r"attn\.output_proj\.weight": ("attn.output_proj.weight", "Q,V"),
    r"attn\.output_proj\.bias": ("attn.output_proj.bias", "Q"),
    r"attn\.wq\.weight": ("attn.q_proj.weight", "Q,Q"),
    r"attn\.w([kv])\.weight": (r"attn.\1_proj.weight", "Q,F"),
    r"attn\.proj\.weight": ("attn.proj.weight", "Q,Q"),
    r"attn\.proj\.bias": ("attn.proj.bias", "Q"),
    r"ffn\.fc1\.weight": ("ffn.fc1.weight", "H,Q"),
    r"ffn\.fc1\.bias": ("ffn.fc1.bias", "H"),
    r"ffn\.dwconv\.dwconv\.weight": ("ffn.dwconv.weight", "H,1,3,3"),
    r"ffn\.dwconv\.dwconv\.bias": ("ffn.dwconv.bias", "H"),
    r"ffn\.fc2\.weight": ("ffn.fc2.weight", "Q,H"),
    r"ffn\.fc2\.bias": ("ffn.fc2.bias", "Q"),
}

_MERGE = {  # D: width of the branch, D1: width of branch 1
    r"0\.weight": ("0.weight", "D1,D,3,3|D"),
    r"0\.bias": ("0.bias", "D"),
    r"[14]\.(weight|bias)": (None, "D1"),
    r"2\.weight": ("2.weight", "D1,D"),
    r"2\.bias": ("2.bias", "D1"),
    r"3\.weight": ("3.weight", "D1,D1,3,3"),
}

_DECONV = {
    r"[03]\.weight": (None, "D1,D1,2,2"),
    r"[03]\.bias": (None, "D1"),
    r"1\.(weight|bias)": (None, "D1"),
}


@dataclass(frozen=True)
class _Entry:
    """One tensor: its name here and the shape it must have, in symbols of its part of the model."""

    name: str
    shape: str
    scope: dict[str, str]
    """What the symbols of ``shape`` stand for, e.g. D -> "width of branch 2"."""


def _match(table: Mapping[str, tuple[str | None, str]], rest: str) -> tuple[str, str] | None:
    for pattern, (template, shape) in table.items():
        if match := re.fullmatch(pattern, rest):
            return (rest if template is None else match.expand(template)), shape
    return None


def _branch_entry(name: str, branch: str, table_hit: tuple[str, str]) -> _Entry:
    rest, shape = table_hit
    scope = {
        "D": f"width of branch {branch}",
        "M": f"MLP width of branch {branch}",
        "T": f"position embedding rows of branch {branch}",
        "P": f"patch size of branch {branch}",
    }
    return _Entry(f"{name}.{rest}", shape, scope)


def _interaction_entry(match: re.Match[str], keys: Iterable[str]) -> _Entry | None:
    stage, small, large, direction, kind, rest = match.groups()
    name = f"piip.interactions.{stage}.units.{small}_{large}"
    looks, seen = (small, large) if direction == "2to1" else (large, small)
    arrow = "large_to_small" if direction == "2to1" else "small_to_large"
    query, feat = f"width of branch {looks}", f"width of branch {seen}"
    if kind == "proj":
        shapes = {"weight": "Q,O", "bias": "Q"}
        if rest not in shapes:
            return None
        return _Entry(f"{name}.{arrow}.proj.{rest}", shapes[rest], {"Q": query, "O": feat})
    hit = _match(_INJECTOR, rest)
    if hit is None:
        return None
    prefix = match.string[: match.start(4)]
    projected = f"{prefix}{direction}_proj.weight" in keys
    scope = {
        "Q": query,
        "F": query if projected else feat,
        "A": "sampling points of a query",
        "V": f"value width for branch {looks}",
        "H": f"ConvFFN width for branch {looks}",
    }
    return _Entry(f"{name}.{arrow}.{hit[0]}", hit[1], scope)


def _entry(key: str, keys: Iterable[str]) -> _Entry | None:
    """What the published ``key`` is; None where it is unknown."""
    if match := re.fullmatch(r"branch(\d)\.(.+)", key):
        number, rest = match.groups()
        hit = _match(_VIT, rest)
        return _branch_entry(f"piip.branches.{int(number) - 1}", number, hit) if hit else None
    if match := re.fullmatch(
        r"interactions\.(\d+)\.interaction_units_(\d)(\d)\.branch(2to1|1to2)_(proj|injector)\.(.+)", key
    ):
        return _interaction_entry(match, keys)
    if match := re.fullmatch(r"(?:intermediate_merging_(\d+)_)?w(\d)", key):
        stage, number = match.groups()
        return _Entry(f"{_merge_name(stage)}.weights.{number}", "", {})
    if match := re.fullmatch(r"(?:merge|intermediate_merging_(\d+))_branch(\d)\.(.+)", key):
        stage, number, rest = match.groups()
        hit = _match(_MERGE, rest)
        scope = {"D": f"width of branch {number}", "D1": "width of branch 1"}
        return _Entry(f"{_merge_name(stage)}.transforms.{number}.{hit[0]}", hit[1], scope) if hit else None
    if match := re.fullmatch(r"(?:fpn|up)([12])\.(.+)", key):
        level, rest = match.groups()
        hit = _match(_DECONV, rest)
        if hit and level == "2":
            hit = (hit[0].removeprefix("0."), hit[1]) if hit[0].startswith("0.") else None
        return _Entry(f"pyramid.f{level}.{hit[0]}", hit[1], {"D1": "width of branch 1"}) if hit else None
    if hit := _match(_VIT, key):
        return _branch_entry("piip.branches.0", "1", hit)
    return None


def _merge_name(stage: str | None) -> str:
    return "piip.merge" if stage is None else f"piip.taps.{stage}"


def _terms(shape: str, scope: Mapping[str, str]) -> list[tuple[int, str | None]]:
    """``"3D,D,4"`` -> [(3, meaning of D), (1, meaning of D), (4, None)]."""
    terms: list[tuple[int, str | None]] = []
    for term in filter(None, shape.split(",")):
        match = re.fullmatch(r"(\d*)([A-Z]\d?)|(\d+)", term)
        assert match is not None, term
        factor, symbol, constant = match.groups()
        terms.append((int(constant), None) if constant else (int(factor or 1), scope[symbol]))
    return terms


def _alternative(entry: _Entry, tensor: Tensor) -> list[tuple[int, str | None]]:
    """The shape of ``entry``; of several, the one with as many axes as the tensor."""
    options = [_terms(shape, entry.scope) for shape in entry.shape.split("|")]
    return next((terms for terms in options if len(terms) == tensor.ndim), options[0])


def _check_shapes(entries: Mapping[str, _Entry], state: Mapping[str, Tensor]) -> None:
    votes: dict[str, Counter[int]] = defaultdict(Counter)
    shapes = {key: _alternative(entry, state[key]) for key, entry in entries.items()}
    for key, terms in shapes.items():
        if len(terms) != state[key].ndim:
            continue
        for size, (factor, meaning) in zip(state[key].shape, terms, strict=True):
            if meaning is not None and size % factor == 0:
                votes[meaning][size // factor] += 1
    values = {meaning: counter.most_common(1)[0][0] for meaning, counter in votes.items()}
    wrong = []
    for key, terms in shapes.items():
        expected = tuple(
            factor if meaning is None else factor * values.get(meaning, -1) for factor, meaning in terms
        )
        if tuple(state[key].shape) != expected:
            wrong.append(f"{key} has shape {tuple(state[key].shape)}, expected {expected}")
    if wrong:
        raise ValueError(
            f"{len(wrong)} tensors of the published backbone do not fit the others: {'; '.join(wrong)}. "
            "Convert a checkpoint of one model"
        )


def convert_backbone(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a published backbone's tensors to those of :func:`piip.official.build_backbone`.

    Args:
        state: published key (without ``backbone.``) -> tensor. The tensors themselves are passed on, not
            copied.

    Returns:
        name in :class:`piip.neck.PyramidBackbone` -> tensor.

    Raises:
        ValueError: naming every key that is not known, or every tensor whose shape contradicts the others.
    """
    entries = {key: _entry(key, state.keys()) for key in state}
    if unknown := [key for key, entry in entries.items() if entry is None]:
        raise ValueError(
            f"{len(unknown)} keys are not those of a published PIIP backbone: {', '.join(unknown)}. "
            "Give the backbone's tensors only, without the prefix 'backbone.'"
        )
    known = {key: entry for key, entry in entries.items() if entry is not None}
    _check_shapes(known, state)
    return {entry.name: state[key] for key, entry in known.items()}
