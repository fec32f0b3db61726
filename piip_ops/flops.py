"""What the operators cost, for fvcore's counters."""

from collections.abc import Callable
from math import prod
from typing import Any

Handle = Callable[[list[Any], list[Any]], int]


def flop_handles() -> dict[str, Handle]:
    """Handles that count multiply-adds: ``FlopCountAnalysis(...).set_op_handle(**flop_handles())``.

    A point costs 5 per channel: 4 to interpolate it and 1 to weight it.
    """
    return {
        "piip_ops::deform_cross_attn": _points_in(2),
        "piip_ops::ms_deform_attn": _points_in(3),
    }


def _points_in(mixing: int) -> Handle:
    """A handle: input 0 is value (B, S, heads, C), input ``mixing`` has an element for every point."""
    return lambda inputs, outputs: 5 * prod(inputs[mixing].type().sizes()) * inputs[0].type().sizes()[-1]
