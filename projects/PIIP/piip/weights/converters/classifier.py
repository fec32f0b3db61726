"""Released classifiers: the published names of tensors and ours."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from ..differences import check_values
from .backbone import convert_backbone, to_official_backbone

__all__ = ["convert_classifier", "is_official_classifier", "to_official_classifier"]

_RULES = (  # published, ours; n counts branches from 1, m from 0
    (r"branch(?P<n>\d)\.cls_token", "piip.branches.{m}.cls_token"),
    (r"branch(?P<n>\d)\.norm\.(?P<k>weight|bias)", "head.norms.{m}.{k}"),
    (r"branch(?P<n>\d)\.head\.(?P<k>weight|bias)", "head.heads.{m}.{k}"),
    (r"cls_norm\.(?P<k>weight|bias)", "head.norm.{k}"),
    (r"cls_head\.(?P<k>weight|bias)", "head.head.{k}"),
    (r"merge_branch1\.(?P<k>weight|bias)", "piip.merge.transforms.1.0.{k}"),
    (r"merge_branch(?P<n>\d)\.(?P<p>[024])\.(?P<k>weight|bias)", "piip.merge.transforms.{n}.{h}.{k}"),
)
_WAY_BACK = (  # ours, published
    (r"piip\.branches\.(?P<m>\d)\.cls_token", "branch{n}.cls_token"),
    (r"head\.norms\.(?P<m>\d)\.(?P<k>weight|bias)", "branch{n}.norm.{k}"),
    (r"head\.heads\.(?P<m>\d)\.(?P<k>weight|bias)", "branch{n}.head.{k}"),
    (r"head\.norm\.(?P<k>weight|bias)", "cls_norm.{k}"),
    (r"head\.head\.(?P<k>weight|bias)", "cls_head.{k}"),
    (r"piip\.merge\.transforms\.1\.0\.(?P<k>weight|bias)", "merge_branch1.{k}"),
    (r"piip\.merge\.transforms\.(?P<n>\d)\.(?P<h>\d)\.(?P<k>weight|bias)", "merge_branch{n}.{p}.{k}"),
)


def _renamed(key: str, rules: tuple[tuple[str, str], ...]) -> str | None:
    for pattern, template in rules:
        if match := re.fullmatch(pattern, key):
            values = match.groupdict()
            if "m" in values:
                values["n"] = str(int(values["m"]) + 1)
            elif "n" in values:
                values["m"] = str(int(values["n"]) - 1)
            if "p" in values:  # the published sequence has a permutation between its layers
                values["h"] = str(int(values["p"]) // 2)
            elif "h" in values:
                values["p"] = str(int(values["h"]) * 2)
            return template.format(**values)
    return None


def is_official_classifier(state: Mapping[str, object]) -> bool:
    """Whether names are those of a published classifier."""
    return any(re.fullmatch(r"branch1\.head\.weight|cls_head\.weight", str(key)) for key in state)


def convert_classifier(state: Mapping[str, Tensor], origin: object = "the checkpoint") -> dict[str, Tensor]:
    """Rename a published classifier's tensors to those of :func:`piip.official.build_classifier`.

    Args:
        state: published key -> tensor. Tensors are passed on, not copied.
        origin: what to call the source in errors.

    Raises:
        ValueError: naming every key that is not known, every tensor whose shape contradicts the others, or
            the first that holds something else than finite numbers.
    """
    ours = {key: _renamed(key, _RULES) for key in state}
    try:
        converted = convert_backbone({key: state[key] for key, name in ours.items() if name is None})
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from error
    converted |= {name: state[key] for key, name in ours.items() if name is not None}
    check_values(converted, origin)
    return converted


def to_official_classifier(
    state: Mapping[str, Tensor], origin: object = "the checkpoint"
) -> dict[str, Tensor]:
    """Undo :func:`convert_classifier`.

    Raises:
        ValueError: naming every tensor for which there is no published name.
    """
    theirs = {name: _renamed(name, _WAY_BACK) for name in state}
    try:
        official = to_official_backbone({name: state[name] for name, key in theirs.items() if key is None})
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from error
    return official | {key: state[name] for name, key in theirs.items() if key is not None}
