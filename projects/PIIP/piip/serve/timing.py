"""Time that the components of a model take."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..backbone import PIIP

__all__ = ["timed"]


@contextmanager
def timed(model: nn.Module, piip: PIIP) -> Iterator[dict[str, float]]:
    """Time the components of a model while the context lasts.

    Args:
        model: a detector or a segmentor, with the PIIP inside its `backbone`.
        piip: that PIIP.

    Yields:
        Filled when the context ends, in seconds: "branch1", ..., "interactions", "merge", "resizing" (the
        rest of the PIIP), "neck" (the rest of the backbone) and "heads" (the rest: heads, and what is made of
        them). On a GPU each component is waited for, which takes a little longer than without timing.
    """
    spent: dict[str, float] = defaultdict(float)
    starts: dict[nn.Module, float] = {}
    components: dict[nn.Module, str] = {model: "all", model.backbone: "backbone", piip: "piip"}  # type: ignore[dict-item]
    for number, branch in enumerate(piip.branches, start=1):
        # a branch is run by methods: what is called are its blocks, and children that hold none of them
        blocks = set(branch.blocks)
        called = [child for child in branch.children() if blocks.isdisjoint(child.modules())]
        components.update(dict.fromkeys([*branch.blocks, *called], f"branch{number}"))
    components.update(dict.fromkeys(piip.interactions, "interactions"))
    components.update(dict.fromkeys([*piip.taps.values(), *([piip.merge] if piip.merge else [])], "merge"))

    def now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    def begin(module: nn.Module, *_: Any) -> None:
        starts[module] = now()

    def end(module: nn.Module, *_: Any) -> None:
        spent[components[module]] += now() - starts.pop(module)

    handles = [
        handle
        for module in components
        for handle in (module.register_forward_pre_hook(begin), module.register_forward_hook(end))
    ]
    seconds: dict[str, float] = {}
    try:
        yield seconds
    finally:
        for handle in handles:
            handle.remove()
    inside = {key: value for key, value in spent.items() if key not in ("all", "backbone", "piip")}
    seconds.update(inside)
    seconds["resizing"] = spent["piip"] - sum(inside.values())
    seconds["neck"] = spent["backbone"] - spent["piip"]
    seconds["heads"] = spent["all"] - spent["backbone"]
