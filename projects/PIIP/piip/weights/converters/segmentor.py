"""Released UPerNet segmentors: mmsegmentation's names, and those of `Segmentor`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .backbone import backbone_rules
from .released import ReleasedFormat
from .rules import Rule, below

__all__ = ["SEGMENTOR", "convert_segmentor", "to_official_segmentor"]

_HEADS = ("decode_head.", "auxiliary_head.")


def _rules(state: Mapping[str, Tensor]) -> list[Rule]:
    heads = below("", "heads.", [(head, head) for head in _HEADS])
    return [*heads, *backbone_rules(state, "backbone.", "backbone.")]


SEGMENTOR = ReleasedFormat("segmentor", _rules, _HEADS, ("heads.decode_head.",))
convert_segmentor, to_official_segmentor = SEGMENTOR.convert, SEGMENTOR.to_official
