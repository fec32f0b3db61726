"""The models of the published tables, from what a table says about them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..backbone import PIIP
from ..branches import BEiTBranch, UniPerceiverBranch, ViTBranch
from ..interaction import InteractionConfig, Link

__all__ = ["VIT_SIZES", "CannotBuild", "build_row"]

VIT_SIZES = {
    "T": (192, 12, 3),
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "H": (1280, 32, 16),
    "6B": (3200, 48, 25),
}
"""Channels, blocks and heads of the published vision transformers, by the paper's letters."""

_INTERN = {"H", "6B"}
_INTERN_PRETRAINING = {
    # what is pretrained -> (letters, side of the pretraining images), of the class of AugReg, DINOv2 and MAE
    "AugReg 384": ("SBL", 384),
    "DINOv2": ("SBL", 518),
    "DeiT III (S) + MAE (BL)": ("BL", 224),
}
_FAMILIES = {
    "DeiT III (S) + Uni-Perceiver (BL)": UniPerceiverBranch,
    "DeiT III (S) + BEiTv2 (BL)": BEiTBranch,
}
_KNOWN_PRETRAINING = {*_INTERN_PRETRAINING, *_FAMILIES, "DeiT III", None}

_Windows = Sequence[int | None]
_WINDOWS: dict[Any, Mapping[str, _Windows]] = {
    "global": {letter: [None] for letter in VIT_SIZES},
    "14,14,global": {letter: [14, 14, None] for letter in VIT_SIZES},
    "28,28,14 (S,B,L)": {"S": [28], "B": [28], "L": [14]},
    "T 14, S 14, B 14,14,global": {"T": [14], "S": [14], "B": [14, 14, None]},
}


class CannotBuild(ValueError):  # noqa: N818  (an answer, not an accident)
    """The project has no model for a row; the message is the reason."""


def letters_and_sizes(row: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Model letter and image size of each branch, smallest model first as the tables list them."""
    name = (
        row["model"].partition(",")[0].removeprefix("PIIP-").removeprefix("ViT-").removeprefix("InternViT-")
    )
    letters = re.findall("6B|[TSBLH]", name)
    sizes = [int(size) for size in re.findall(r"\d+", row["resolution"])]
    if "".join(letters) != name or len(letters) != len(sizes):
        raise CannotBuild(f"{row['model']} at {row['resolution']} is not made of plain vision transformers")
    return list(zip(letters, sizes, strict=True))


def _branch(letter: str, windows: _Windows, pretraining: str | None) -> ViTBranch:
    dim, depth, heads = VIT_SIZES[letter]
    intern_letters, pretrain_size = _INTERN_PRETRAINING.get(pretraining or "", ("", 224))
    is_intern = letter in _INTERN or letter in intern_letters
    is_6b = letter == "6B"
    sizes: dict[str, Any] = {
        "embed_dim": dim,
        "depth": depth,
        "num_heads": heads,
        "window_sizes": [windows[i % len(windows)] for i in range(depth)],
    }
    if pretraining in _FAMILIES and letter in "BL":
        return _FAMILIES[pretraining](**sizes)
    return ViTBranch(
        **sizes,
        pretrain_image_size=pretrain_size if letter in intern_letters else 224,
        pos_embed_has_cls=is_intern,
        norm="rms_norm" if is_6b else "layer_norm",
        qk_norm=is_6b,
        qkv_bias=not is_6b,
    )


def build_row(
    row: Mapping[str, Any],
    *,
    links: str | Sequence[Link] = "adjacent",
    merge_branches: Sequence[int] | None = None,
) -> PIIP:
    """Build the model of a row, on the device that is current.

    Args:
        row: of published.json.
        links: as in :class:`piip.PIIP`.
        merge_branches: as in :class:`piip.PIIP`.

    Raises:
        CannotBuild: the project has no such model.
    """
    pretraining = row.get("pretraining")
    if pretraining not in _KNOWN_PRETRAINING:
        raise CannotBuild(f"there is no branch family for {pretraining}")
    models = letters_and_sizes(row)[::-1]
    window = row.get("window", 14)
    by_letter = _WINDOWS.get(window) or {letter: [window] for letter in VIT_SIZES}
    interacting = len(models) > 1 and "no interaction" not in row["model"]
    return PIIP(
        [_branch(letter, by_letter[letter], pretraining) for letter, _ in models],
        [size for _, size in models],
        num_interactions=row.get("num_interactions", 12) if interacting else 0,
        links=links,  # type: ignore[arg-type]
        interaction=InteractionConfig(attention=row.get("attention", "deformable")),
        merge="conv" if len(models) > 1 else "identity",
        merge_branches=merge_branches,
    )
