"""What the published configurations of all tasks have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ..backbone import Stage

__all__ = ["ATTENTION", "stages", "windows"]

ATTENTION: dict[str, Literal["deformable", "regular"]] = {"deform": "deformable", "normal": "regular"}
"""Published kinds of attention between branches, and ours."""


def windows(config: Mapping[str, Any]) -> list[int | None]:
    """Side of each block's window in tokens, None where attention is global.

    Raises:
        ValueError: there is not one entry a block.
    """
    depth = config["depth"]
    windowed: Sequence[bool] = config.get("window_attn") or [False] * depth
    sizes: Sequence[int] = config.get("window_size") or [-1] * depth
    if len(windowed) != depth or len(sizes) != depth:
        raise ValueError(
            f"{len(windowed)} window_attn and {len(sizes)} window_size entries for {depth} blocks"
        )
    return [size if on else None for on, size in zip(windowed, sizes, strict=True)]


def stages(config: Mapping[str, Any]) -> list[Stage]:
    """First and last block of each stage."""
    return [(ranges[0], ranges[-1]) for ranges in config["interaction_indexes"]]
