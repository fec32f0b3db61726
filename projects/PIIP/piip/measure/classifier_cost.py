"""What a classifier costs: branches, interactions, merge and heads, for one image."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..classification.classifier import PIIPClassifier
from ..flops import Report, count_operators, published_cost
from ..flops.actual import check_input_size, collect, piip_locator

__all__ = ["classifier_cost"]


def classifier_cost(model: PIIPClassifier, input_size: tuple[int, int] | None, accounting: str) -> Report:
    """Count a classifier.

    Args:
        model: on the meta device.
        input_size: height and width in pixels; None for the square that it is made for.
        accounting: "actual", what runs; or "published", as the published tables count it, with 1000 classes.

    Raises:
        ValueError: a size it cannot take.
    """
    side = model.piip.input_size
    size = input_size or (side, side)
    check_input_size(size, model.piip.stride)
    if accounting == "published":
        return published_cost(model.piip, size)
    locate_below = piip_locator(model.piip)

    def locate(name: Sequence[str], operator: str | None) -> tuple[str, ...]:
        return locate_below(name[1:], operator) if list(name[:1]) == ["piip"] else ("heads",)

    image = torch.empty(1, 3, *size, device="meta")
    return collect(model.eval(), count_operators(model, (image,)), locate, size, [])
