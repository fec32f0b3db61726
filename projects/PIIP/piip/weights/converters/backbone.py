"""Renames a backbone's tensors, from the published names to ours and back.

Shapes are checked on the way. The tables write them with symbols, whose values are read from the tensors
themselves: a symbol means what most of the tensors that use it say, so the odd one out is the one reported.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...branches.beit import relative_position_index
from .names import (
    ANY_FAMILY,
    CONVNEXT_NORM,
    CONVNEXT_STAGE,
    CONVNEXT_STEM,
    F1,
    F2,
    FAMILIES,
    INJECTOR,
    MERGE,
    PROJECTION,
    WEIGHT,
    Rule,
)

__all__ = ["convert_backbone", "to_official_backbone"]


@dataclass(frozen=True)
class _Part:
    """A part of the model: what its names begin with, what the rest are, and what the symbols in it mean."""

    published: str
    ours: str
    rules: tuple[Rule, ...]
    scope: Mapping[str, str]
    """From symbols to their meaning, e.g. D -> "width of branch 2"."""


@dataclass(frozen=True)
class _Entry:
    """One tensor: both its names (here None where it is not kept) and its shape, in symbols of its part."""

    published: str
    ours: str | None
    part: _Part
    shape: str


_UNIT = re.compile(
    r"(?:interactions\.(\d+)\.interaction_units_(\d)(\d)|piip\.interactions\.(\d+)\.units\.(\d+)_(\d+))\..*"
)
_TAP = re.compile(r"(?:intermediate_merging_|piip\.taps\.)(\d+)[_.].*")
_CONVNEXT = re.compile(r"(?:(?:branch(\d)\.)?convnext_model\.|piip\.branches\.(\d+)\.stages\.).*")


class _Layout:
    """The parts of a backbone, found in its names, published ones or ours.

    Args:
        names: all names.
        families: model family of each branch, by its number; None where any will do.
    """

    def __init__(self, names: Collection[str], families: Mapping[int, str] | None = None) -> None:
        self.names = names
        self.families = families
        self.is_single = not any(name.startswith(("branch", "piip.branches.1.")) for name in names)
        self.taps = sorted({match[1] for match in map(_TAP.fullmatch, names) if match}, key=int)
        self.units = sorted(
            {
                tuple(value for value in match.groups() if value is not None)
                for match in map(_UNIT.fullmatch, names)
                if match
            }
        )
        self.last = max((stage for stage, _, _ in self.units), key=int, default="0")
        self.convnext = {
            int(match[1]) if match[1] else int(match[2] or 0) + 1
            for match in map(_CONVNEXT.fullmatch, names)
            if match
        }

    def width(self, branch: int, stage: str) -> str:
        """Name of the width of a branch at a stage: only that of a ConvNeXt depends on the stage."""
        return f"width of branch {branch}" + (f" after stage {stage}" if branch in self.convnext else "")

    def parts(self) -> Iterator[_Part]:
        """All parts that there are, those with the more telling prefixes first."""
        for stage, small, large in self.units:
            yield from self._interaction(stage, int(small), int(large))
        for stage in [*self.taps, None]:
            yield from self._merge(stage)
        up = "up" if self.is_single else "fpn"
        for level, rules in (("1", F1), ("2", F2)):
            stage = self.taps[int(level) - 1] if len(self.taps) > 1 else self.last
            yield _Part(f"{up}{level}.", f"pyramid.f{level}.", rules, {"D1": self.width(1, stage)})
        if self.is_single:
            yield from self._branch("", 1)
        else:
            for number in range(1, 10) if self.families is None else {*self.families, *self.convnext}:
                yield from self._branch(f"branch{number}.", number)

    def _branch(self, published: str, number: int) -> Iterator[_Part]:
        ours, branch = f"piip.branches.{number - 1}.", f"branch {number}"
        if number in self.convnext:
            published += "convnext_model."
            dims = [f"width of {branch}, ConvNeXt stage {stage}" for stage in range(4)]
            patch = {"P": f"patch size of {branch}"}
            for stage, dim in enumerate(dims):
                scope = {"D": dim, "C": dims[stage - 1]}
                yield _Part(
                    f"{published}encoder.stages.{stage}.", f"{ours}stages.{stage}.", CONVNEXT_STAGE, scope
                )
            yield _Part(published, ours, CONVNEXT_STEM, {"D": dims[0], **patch})
            yield _Part(published, ours, CONVNEXT_NORM, {"D": dims[-1]})
            return
        scope = {
            "D": f"width of {branch}",
            "M": f"MLP width of {branch}",
            "T": f"position embedding rows of {branch}",
            "P": f"patch size of {branch}",
            "R": f"relative positions of {branch}",
            "H": f"heads of {branch}",
            "N": f"tokens of a window of {branch}",
        }
        rules = ANY_FAMILY if self.families is None else FAMILIES[self.families[number]]
        yield _Part(published, ours, rules, scope)

    def _interaction(self, stage: str, small: int, large: int) -> Iterator[_Part]:
        published = f"interactions.{stage}.interaction_units_{small}{large}.branch"
        for direction, arrow, looks, seen in (
            ("2to1", "large_to_small", small, large),
            ("1to2", "small_to_large", large, small),
        ):
            theirs, ours = published + direction, f"piip.interactions.{stage}.units.{small}_{large}.{arrow}"
            projected = {f"{theirs}_proj.weight", f"{ours}.proj.weight"} & set(self.names)
            query, feat = self.width(looks, stage), self.width(seen, stage)
            scope = {
                "Q": query,
                "O": feat,
                "F": query if projected else feat,
                "A": "sampling points of a query",
                "V": f"value width for the {query}",
                "H": f"ConvFFN width for the {query}",
            }
            yield _Part(f"{theirs}_proj.", f"{ours}.proj.", PROJECTION, scope)
            yield _Part(f"{theirs}_injector.", f"{ours}.", INJECTOR, scope)

    def _merge(self, stage: str | None) -> Iterator[_Part]:
        theirs, ours = (
            ("", "piip.merge.")
            if stage is None
            else (f"intermediate_merging_{stage}_", f"piip.taps.{stage}.")
        )
        stage = stage or self.last
        yield _Part(theirs, ours, WEIGHT, {})
        theirs = theirs or "merge_"
        for number in range(1, 10):
            scope = {"D": self.width(number, stage), "D1": self.width(1, stage)}
            yield _Part(f"{theirs}branch{number}.", f"{ours}transforms.{number}.", MERGE, scope)


def _find(name: str, parts: Iterable[_Part], *, published: bool) -> _Entry | None:
    """What the name, a published one or ours, stands for; None where it is unknown."""
    for part in parts:
        prefix = part.published if published else part.ours
        if not name.startswith(prefix):
            continue
        rest = name.removeprefix(prefix)
        for rule in part.rules:
            other = rule.to_ours(rest) if published else rule.to_published(rest)
            if other is not None and published:
                return _Entry(name, part.ours + other if other else None, part, rule.shape)
            if other:
                return _Entry(part.published + other, name, part, rule.shape)
    return None


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
    options = [_terms(shape, entry.part.scope) for shape in entry.shape.split("|")]
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
            f"{len(wrong)} tensors of the backbone do not fit the others: {'; '.join(wrong)}. "
            "Convert a checkpoint of one model"
        )


def _check_index(key: str, index: Tensor) -> None:
    window_size = math.isqrt(index.shape[0])
    if not index.is_meta and not torch.equal(index.cpu(), relative_position_index(window_size)):
        raise ValueError(
            f"{key} is not the index of relative positions in a window of {window_size}x{window_size} "
            "tokens: expected none or that"
        )


def convert_backbone(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a published backbone's tensors to those of :func:`piip.official.build_backbone`.

    BEiT's indices of relative positions are constants: they are checked and left out.

    Args:
        state: published key (without ``backbone.``) -> tensor. The tensors are passed on, not copied.

    Returns:
        name in :class:`piip.neck.PyramidBackbone` -> tensor.

    Raises:
        ValueError: naming every key that is not known, two keys that mean the same, or every tensor whose
            shape contradicts the others.
    """
    parts = list(_Layout(state).parts())
    entries = {key: _find(key, parts, published=True) for key in state}
    if unknown := [key for key, entry in entries.items() if entry is None]:
        raise ValueError(
            f"{len(unknown)} keys are not those of a published PIIP backbone: {', '.join(unknown)}. "
            "Give the backbone's tensors only, without the prefix 'backbone.'"
        )
    known = {key: entry for key, entry in entries.items() if entry is not None}
    _check_shapes(known, state)
    converted: dict[str, Tensor] = {}
    source: dict[str, str] = {}
    for key, entry in known.items():
        if entry.ours is None:
            _check_index(key, state[key])
        elif entry.ours in source:
            raise ValueError(f"{source[entry.ours]} and {key} are the same tensor: expected one of them")
        else:
            converted[entry.ours] = state[key]
            source[entry.ours] = key
    return converted


def _families(state: Mapping[str, Tensor]) -> dict[int, str]:
    """The family of each branch as far as its published names depend on it.

    The published "deit" and "intern" models differ in nothing but names and a class-token row of the position
    embedding, whose number of rows is no square then.

    Raises:
        ValueError: for a branch without position embedding of any kind.
    """
    families: dict[int, str] = {}
    for index in {
        match[1] for match in (re.match(r"piip\.branches\.(\d+)\.blocks\.", name) for name in state) if match
    }:
        prefix = f"piip.branches.{index}."
        position = state.get(f"{prefix}pos_embed")
        if f"{prefix}blocks.0.attn.relative_position_bias_table" in state:
            family = "beit"
        elif f"{prefix}temporal_embed" in state:
            family = "uni_perceiver"
        elif position is None:
            raise ValueError(
                f"{prefix}pos_embed is missing: it tells how the published model names its tensors"
            )
        else:
            rows = position.shape[-2]
            family = "deit" if math.isqrt(rows) ** 2 == rows else "intern"
        families[int(index) + 1] = family
    return families


def to_official_backbone(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of :class:`piip.neck.PyramidBackbone` to the published ones.

    Undoes :func:`convert_backbone`. BEiT's indices of relative positions are made anew.

    Args:
        state: our name, beginning with ``piip.`` or ``pyramid.`` -> tensor.

    Returns:
        published key (without ``backbone.``) -> tensor, not copied.

    Raises:
        ValueError: naming every key without a published one, or whose shape contradicts the others.
    """
    parts = list(_Layout(state, _families(state)).parts())
    entries = {name: _find(name, parts, published=False) for name in state}
    if unknown := [name for name, entry in entries.items() if entry is None]:
        raise ValueError(
            f"{len(unknown)} tensors have no published name: {', '.join(unknown)}. "
            "Only models with the released neck and links between adjacent branches have a published form"
        )
    known = {name: entry for name, entry in entries.items() if entry is not None}
    _check_shapes(known, state)
    official: dict[str, Tensor] = {}
    for name, entry in known.items():
        tensor = official[entry.published] = state[name]
        if entry.published.endswith("relative_position_bias_table"):
            window_size = (math.isqrt(tensor.shape[0]) + 1) // 2
            key = entry.published.replace("bias_table", "index")
            official[key] = relative_position_index(window_size).to(tensor.device)
    return official
