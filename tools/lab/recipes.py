"""The models of the published tables, from what a table says about them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from piip.backbone import PIIP
from piip.branches import Branch, published
from piip.branches.published import VIT_SIZES, PublishedBranch
from piip.interaction import InteractionConfig, Link
from piip.library.classifiers import from_scratch, pretrained_heads

__all__ = ["CannotBuild", "build_classifier_row", "build_row", "letters_and_sizes"]

_PRETRAINING: dict[str | None, Mapping[str, Callable[..., PublishedBranch]]] = {
    # of the letters that are not DeiT III or, as H, MAE
    "AugReg 384": dict.fromkeys("SBL", published.augreg),
    "DINOv2": dict.fromkeys("SBL", published.dinov2),
    "DeiT III (S) + MAE (BL)": dict.fromkeys("BL", published.mae),
    "DeiT III (S) + Uni-Perceiver (BL)": dict.fromkeys("BL", published.uni_perceiver),
    "DeiT III (S) + BEiTv2 (BL)": dict.fromkeys("BL", published.beitv2),
    "DeiT III": {},
    None: {},
}

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


def _branch(letter: str, windows: _Windows, pretraining: str | None) -> Branch:
    sizes = [windows[i % len(windows)] for i in range(VIT_SIZES[letter][1])]
    if letter == "6B":
        branch = published.internvit_6b()
        return branch.family(**{**branch.options, "window_sizes": sizes})
    make = _PRETRAINING[pretraining].get(letter, published.mae if letter == "H" else published.vit)
    return make(letter, sizes).build()


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
    if pretraining not in _PRETRAINING:
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


def build_classifier_row(row: Mapping[str, Any]) -> PIIP:
    """Build the network of a row of the table "classification", on the device that is current."""
    if "scratch" in row["model"]:
        return from_scratch([int(size) for size in row["resolution"].split("/")])
    models = letters_and_sizes(row)
    letters = "".join(letter for letter, _ in models)
    family: Literal["deit", "augreg"] = "deit" if "T" in letters else "augreg"
    return pretrained_heads(letters, [size for _, size in models], family)
