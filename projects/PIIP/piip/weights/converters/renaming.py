"""Renaming tensors by pairs of templates."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache

from torch import Tensor

from ..differences import check_values

__all__ = ["Pair", "invert", "rename_all"]

Pair = tuple[str, str]
"""How names begin, and how they begin elsewhere; ``#`` is a number, the same ones in the same order."""


def invert(pairs: Sequence[Pair]) -> tuple[Pair, ...]:
    """The way back."""
    return tuple((target, source) for source, target in pairs)


@cache
def _pattern(source: str) -> re.Pattern[str]:
    return re.compile(re.escape(source).replace(r"\#", "#").replace("#", r"(\d+)"))


def _rename(key: str, pairs: Sequence[Pair]) -> str | None:
    for source, target in pairs:
        if match := _pattern(source).match(key):
            for number in match.groups():
                target = target.replace("#", number, 1)
            return target + key[match.end() :]
    return None


def rename_all(
    state: Mapping[str, Tensor], pairs: Sequence[Pair], problem: str, origin: object
) -> dict[str, Tensor]:
    """Rename every tensor by the first pair that its name begins with.

    Args:
        state: name -> tensor, passed on, not copied.
        pairs: see :data:`Pair`.
        problem: what to say of names that no pair knows.
        origin: what to call the source of tensors that are not finite.

    Raises:
        ValueError: naming every name that no pair knows, or the first tensor that is not finite.
    """
    names = {key: _rename(key, pairs) for key in state}
    if unknown := [key for key, name in names.items() if name is None]:
        raise ValueError(f"{problem}, {len(unknown)} keys are unknown: {', '.join(unknown)}")
    renamed = {name: state[key] for key, name in names.items() if name is not None}
    check_values(renamed, origin)
    return renamed
