"""Numbers of annotation files, which people and programs write in many ways."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["UnusableError", "finite_number", "whole_number"]

_LARGEST = 2**53  # beyond it, JSON's numbers are not exact


class UnusableError(ValueError):
    """Why an entry is skipped, as a clause behind "images" or "annotations"."""


def whole_number(value: Any) -> int | None:
    """The whole number that a value plainly means: 3, 3.0, "3"; None for others, and for booleans."""
    if isinstance(value, str):
        try:
            value = int(value)
        except ValueError:
            value = finite_number(value)
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and abs(value) <= _LARGEST else None


def finite_number(value: Any) -> float | None:
    """The finite number that a value plainly means: 0.5, 1, "0.5"; None for others, and for booleans."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and -math.inf < value < math.inf else None
