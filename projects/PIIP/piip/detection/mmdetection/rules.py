"""The choice between the rules of mmdetection and those of Detectron2."""

from __future__ import annotations

from typing import Any, Literal, get_args

from detectron2.config import LazyCall as L
from detectron2.data import DatasetMapper
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.utils.registry import locate
from omegaconf import DictConfig

from ..data import dataset_dicts
from .mapper import ReleasedMapper
from .matching import MaxIoUMatcher
from .rcnn import ReleasedRCNN
from .roi_heads import ReleasedROIHeads
from .rpn import ReleasedRPN

__all__ = ["Rules", "use_rules"]

Rules = Literal["detectron2", "mmdetection"]

_CLASSES = (
    (GeneralizedRCNN, ReleasedRCNN),
    (RPN, ReleasedRPN),
    (StandardROIHeads, ReleasedROIHeads),
    (DatasetMapper, ReleasedMapper),
)
"""Detectron2's and, by mmdetection's rules, what takes its place."""


def use_rules(rules: Rules, model: DictConfig, dataloader: DictConfig | None = None) -> None:
    """Have a detector trained by the rules of one library, in place.

    What is of neither library, such as a mapper of your own, stays as it is.

    Args:
        rules: "mmdetection", as the released detectors were trained, or "detectron2".
        model: of a LazyConfig.
        dataloader: likewise, which then has these rules for `--data`, too; None for the model alone.

    Raises:
        ValueError: there are no such rules.
    """
    if rules not in get_args(Rules):
        raise ValueError(f"there are no rules {rules!r}: use one of {', '.join(get_args(Rules))}")
    _exchange(model, rules)
    if "proposal_generator" in model:
        _exchange(model.proposal_generator, rules)
        _exchange_matcher(model.proposal_generator, "anchor_matcher", rules, low_quality=True)
    if "roi_heads" in model:
        _exchange(model.roi_heads, rules)
        _exchange_matcher(model.roi_heads, "proposal_matcher", rules, low_quality=False)
    if dataloader is not None:
        _exchange(dataloader.train.mapper, rules)
        if _target(dataloader.train.dataset) is dataset_dicts:
            dataloader.train.dataset.rules = rules
        if "own_data" in dataloader:
            dataloader.own_data.rules = rules


def _target(node: DictConfig) -> Any:
    target = node.get("_target_")
    return locate(target) if isinstance(target, str) else target


def _exchange(node: DictConfig, rules: Rules) -> None:
    for pair in _CLASSES:
        if _target(node) in pair:
            node._target_ = pair[get_args(Rules).index(rules)]


def _exchange_matcher(node: DictConfig, name: str, rules: Rules, *, low_quality: bool) -> None:
    """Exchange the matcher of a part; `low_quality`: whether Detectron2's then has low-quality matches."""
    matcher = node.get(name, {})
    if _target(matcher) not in (Matcher, MaxIoUMatcher):
        return
    thresholds = {"thresholds": matcher.thresholds, "labels": matcher.labels}
    if rules == "mmdetection":
        node[name] = L(MaxIoUMatcher)(**thresholds, min_overlap=matcher.thresholds[0])
    else:
        node[name] = L(Matcher)(**thresholds, allow_low_quality_matches=low_quality)
