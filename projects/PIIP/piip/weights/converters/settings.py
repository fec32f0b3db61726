"""What the published configurations of all tasks have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ...backbone import Stage
from ...interaction import InteractionConfig

__all__ = ["interaction", "stages", "windows"]

_ATTENTION: dict[str, Literal["deformable", "regular"]] = {"deform": "deformable", "normal": "regular"}


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


def interaction(config: Mapping[str, Any]) -> InteractionConfig:
    """What the interactions are made of; settings that are absent have the published constructor's defaults.

    Raises:
        ValueError: an attention that is not known.
    """
    attention = config.get("interact_attn_type", "normal")
    if attention not in _ATTENTION:
        raise ValueError(f"unknown interact_attn_type {attention!r}: expected one of {list(_ATTENTION)}")
    return InteractionConfig(
        attention=_ATTENTION[attention],
        num_heads=config.get("deform_num_heads", 6),
        num_points=config.get("n_points", 4),
        deform_ratio=config.get("deform_ratio", 1.0),
        ffn=config.get("with_cffn", False),
        ffn_ratio=config.get("cffn_ratio", 0.25),
        drop_path_rate=config.get("interaction_drop_path_rate", 0.3),
        projection=config.get("interaction_proj", True),
        norm=config.get("norm_layer", "ln") != "none",
    )
