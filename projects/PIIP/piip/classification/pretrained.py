"""Classifiers that start from pretrained classifiers: their branches, and the branches' norms and heads."""

from __future__ import annotations

import logging
from typing import cast

from torch import Tensor, nn

from ..branches import Branch
from ..weights.pretrained import convert_head, load_pretrained, read_source
from .classifier import BranchHeads, PIIPClassifier

__all__ = ["load_pretrained_classifier"]

_logger = logging.getLogger(__name__)


def load_pretrained_classifier(model: PIIPClassifier) -> list[str]:
    """Load the weights that the branches name, see `piip.branches.Pretrained`, all of them or none.

    With a head a branch, the heads start from the same files where they are for as many classes; their norms
    do anyway.

    Args:
        model: the classifier.

    Returns:
        Names of the parts that got weights.

    Raises:
        ConnectionError, FileNotFoundError, ValueError: as :func:`piip.weights.pretrained.load_pretrained`, or
            a file has no head.
    """
    parts: list[tuple[str, nn.Module, dict[str, Tensor]]] = []
    if isinstance(model.head, BranchHeads):
        branches = cast("list[Branch]", list(model.piip.branches))
        for number, (branch, norm, head) in enumerate(
            zip(branches, model.head.norms, model.head.heads, strict=True)
        ):
            if branch.pretrained is None:
                continue
            source = branch.pretrained.source
            ending = convert_head(read_source(source), branch.pretrained.family, source)
            parts.append((f"head.norms.{number}", norm, ending["norm"]))
            classes = len(ending["head"]["bias"])
            if classes == model.num_classes:
                parts.append((f"head.heads.{number}", head, ending["head"]))
            else:
                _logger.warning(
                    f"head.heads.{number} starts anew: {source} knows {classes} classes, the model has "
                    f"{model.num_classes}"
                )
    loaded = load_pretrained(model)
    for _, module, weights in parts:
        module.load_state_dict(weights)
    return [*loaded, *(name for name, _, _ in parts)]
