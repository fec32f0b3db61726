"""Norms in half precision on a GPU."""

from __future__ import annotations

from torch import Tensor, nn

from ..numerics import without_autocast

__all__ = ["NarrowNorm"]


class NarrowNorm(nn.Module):
    """A norm whose result is in the type of its input, which is that of its weights, under autocast, too.

    Autocast on a GPU raises input and weights to float32 first and leaves the result so, for the layer that
    follows to round: three copies more. The kernel computes in float32 anyway.

    Args:
        norm: with weights in half precision.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x``; in another type than the weights' as without this class."""
        if x.dtype != next(self.norm.parameters()).dtype:
            normalised: Tensor = self.norm(x)
            return normalised
        with without_autocast(x.device):
            return self.norm(x)
