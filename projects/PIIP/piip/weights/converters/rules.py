"""Renaming tensors by a table of rules, read in both directions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache

from torch import Tensor

__all__ = ["Rule", "below", "inverse", "rename"]

Rule = tuple[str, str]
"""A released name and ours. ``{i}`` is a number, ``{i+2}`` that number and two. A name that ends in a dot
stands for all that begin so."""

_FIELD = re.compile(r"\{(\w+?)([+-]\d+)?\}")


def inverse(rules: Sequence[Rule]) -> list[Rule]:
    """The rules of the way back."""
    return [(ours, released) for released, ours in rules]


def below(released: str, ours: str, rules: Sequence[Rule]) -> list[Rule]:
    """The same rules for names behind a prefix, that of the released names and ours."""
    return [(released + one, ours + other) for one, other in rules]


@cache
def _pattern(template: str) -> re.Pattern[str]:
    parts, end = [], 0
    for field in _FIELD.finditer(template):
        parts += [re.escape(template[end : field.start()]), f"(?P<{field[1]}>[0-9]+)"]
        end = field.end()
    return re.compile("".join(parts) + re.escape(template[end:]) + ("" if template.endswith(".") else "$"))


def _translate(key: str, source: str, target: str) -> str | None:
    match = _pattern(source).match(key)
    if match is None:
        return None
    offsets = {field[1]: int(field[2] or 0) for field in _FIELD.finditer(source)}
    numbers = {name: int(value) - offsets[name] for name, value in match.groupdict().items()}
    return _FIELD.sub(lambda field: str(numbers[field[1]] + int(field[2] or 0)), target) + key[match.end() :]


def rename(state: Mapping[str, Tensor], rules: Sequence[Rule], complaint: str) -> dict[str, Tensor]:
    """Rename every tensor by the first rule that knows its name.

    Args:
        state: name -> tensor, passed on, not copied.
        rules: the more specific ones first.
        complaint: what to say of names that no rule knows.

    Raises:
        ValueError: naming every name that no rule knows, or two that become one.
    """
    renamed: dict[str, Tensor] = {}
    source: dict[str, str] = {}
    unknown = []
    for key, tensor in state.items():
        name = next((n for rule in rules if (n := _translate(key, *rule)) is not None), None)
        if name is None:
            unknown.append(key)
            continue
        if name in source:
            raise ValueError(f"{source[name]} and {key} are the same tensor: expected one of them")
        renamed[name], source[name] = tensor, key
    if unknown:
        raise ValueError(f"{complaint}, {len(unknown)} keys are unknown: {', '.join(unknown)}")
    return renamed
