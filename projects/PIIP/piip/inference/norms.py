"""Norms in half precision on a GPU."""

from __future__ import annotations

from torch import Tensor, nn

from ..branches.vit import MapBlock
from ..interaction import Injector
from ..numerics import without_autocast

__all__ = ["HalfPrecisionNorm", "half_precision_norms"]

_BEFORE_LINEAR: dict[type[nn.Module], tuple[str, ...]] = {
    MapBlock: ("norm1", "norm2"),
    Injector: ("ffn_norm",),
}


class HalfPrecisionNorm(nn.Module):
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
        """Normalise ``x``. If its dtype is not that of the weights, this is the wrapped norm."""
        if x.dtype != next(self.norm.parameters()).dtype:
            normalised: Tensor = self.norm(x)
            return normalised
        with without_autocast(x.device):
            return self.norm(x)


def half_precision_norms(model: nn.Module) -> None:
    """Put a :class:`HalfPrecisionNorm` around the norms that linear layers follow, which round their input.

    Args:
        model: changed in place; the weights of these norms are in half precision.
    """
    for module in list(model.modules()):
        for name in _BEFORE_LINEAR.get(type(module), ()):
            norm = getattr(module, name, None)
            if isinstance(norm, nn.LayerNorm | nn.RMSNorm):
                setattr(module, name, HalfPrecisionNorm(norm))
