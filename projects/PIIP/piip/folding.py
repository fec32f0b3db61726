"""Constant factors and linear maps multiplied into the weights before them.

A module that can be simplified once it is no longer trained has a method ``fold()``. What it computes stays
the same up to rounding (products are taken in float64), its parameters do not.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

__all__ = ["Foldable", "compose", "scale_output"]


@runtime_checkable
class Foldable(Protocol):
    """A module that can be simplified for inference."""

    def fold(self) -> None:
        """Multiply constants into weights, in place. A second call changes nothing."""


@torch.no_grad()
def scale_output(layer: nn.Module, factor: Tensor) -> None:
    """Multiply what a linear layer or a norm puts out by ``factor``, ``(C,)`` or a scalar, in place."""
    for tensor in (layer.weight, layer.bias):
        if isinstance(tensor, Tensor):
            tensor.copy_(tensor.double() * factor.double().view(-1, *[1] * (tensor.ndim - 1)))


@torch.no_grad()
def compose(deconvolution: nn.ConvTranspose2d, pointwise: nn.Conv2d) -> nn.ConvTranspose2d:
    """One deconvolution for a deconvolution and the 1x1 convolution that follows it at once.

    From C through D to E channels, at h x w and 2h x 2w places, a pair takes ``4hw(CD + DE)`` multiply-adds,
    what it becomes ``4hwCE``: with 768, 768 and 256 channels a quarter.

    Args:
        deconvolution: weight ``(C, D, k, k)``.
        pointwise: weight ``(E, D, 1, 1)``; what else it does after the convolution is not looked at.
    """
    weight, mix = deconvolution.weight.double(), pointwise.weight.double().flatten(1)
    joined = nn.ConvTranspose2d(
        deconvolution.in_channels,
        pointwise.out_channels,
        deconvolution.kernel_size,  # type: ignore[arg-type]
        deconvolution.stride,  # type: ignore[arg-type]
        bias=deconvolution.bias is not None or pointwise.bias is not None,
        device=deconvolution.weight.device,
        dtype=deconvolution.weight.dtype,
    )
    joined.weight.copy_(torch.einsum("cdhw,ed->cehw", weight, mix))
    if joined.bias is not None:
        joined.bias.zero_()
        if deconvolution.bias is not None:
            joined.bias.add_(mix @ deconvolution.bias.double())
        if pointwise.bias is not None:
            joined.bias.add_(pointwise.bias)
    return joined.train(deconvolution.training)
