"""Released classifiers: their names, and those of `PIIPClassifier`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .backbone import backbone_rules
from .released import ReleasedFormat
from .rules import Rule

__all__ = ["CLASSIFIER", "convert_classifier", "to_official_classifier"]

_HEADS: tuple[Rule, ...] = (
    ("branch{j+1}.cls_token", "piip.branches.{j}.cls_token"),
    ("branch{j+1}.norm.", "head.norms.{j}."),
    ("branch{j+1}.head.", "head.heads.{j}."),
    ("cls_norm.", "head.norm."),
    ("cls_head.", "head.head."),
    ("merge_branch1.", "piip.merge.transforms.1.0."),  # the released sequences permute between layers
    ("merge_branch{j}.2.", "piip.merge.transforms.{j}.1."),
    ("merge_branch{j}.4.", "piip.merge.transforms.{j}.2."),
)


def _rules(state: Mapping[str, Tensor]) -> list[Rule]:
    return [*_HEADS, *backbone_rules(state)]


CLASSIFIER = ReleasedFormat(
    "classifier", _rules, ("branch1.head.", "cls_head."), ("head.heads.", "head.head.")
)
convert_classifier, to_official_classifier = CLASSIFIER.convert, CLASSIFIER.to_official
