"""Branch merging: from the branches' maps to one (paper section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .folding import scale_output
from .numerics import at_least_float32

__all__ = ["Merge", "MergeKind"]

MergeKind = Literal["conv", "single_conv", "linear", "identity"]

_GROUPS = 32


def _conv(in_dim: int, out_dim: int) -> list[nn.Module]:
    """3x3 convolution, GroupNorm, ReLU, the convolution initialised as published."""
    conv = nn.Conv2d(in_dim, out_dim, 3, padding=1, bias=False)
    nn.init.normal_(conv.weight, std=math.sqrt(2.0 / (9 * out_dim)))
    return [conv, nn.GroupNorm(_GROUPS, out_dim), nn.ReLU()]


class _ChannelLinear(nn.Linear):
    """A linear layer over the channels of a ``(B, C, h, w)`` map."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _transform(kind: MergeKind, dim: int, out_dim: int, is_first: bool) -> nn.Sequential:
    """What a branch's map goes through, at its own resolution, before it is enlarged."""
    if kind == "conv":
        return nn.Sequential(*_conv(dim, out_dim), *_conv(out_dim, out_dim))
    if kind == "single_conv":
        return nn.Sequential(*([nn.GroupNorm(_GROUPS, dim), nn.ReLU()] if is_first else _conv(dim, out_dim)))
    if kind == "linear":
        if is_first:
            return nn.Sequential(nn.GroupNorm(_GROUPS, dim))
        return nn.Sequential(
            nn.GroupNorm(_GROUPS, dim), _ChannelLinear(dim, out_dim), nn.GroupNorm(_GROUPS, out_dim)
        )
    if kind == "identity":
        return nn.Sequential()
    raise ValueError(f"unknown merge {kind!r}: expected 'conv', 'single_conv', 'linear' or 'identity'")


class Merge(nn.Module):
    """``sum_j w_j * enlarge(transform_j(x_j))``, w_j scalars that start at 1.

    Args:
        dims: channels of each branch's map, largest model first; the output has ``dims[0]`` channels.
        kind: the transform of a branch.
            "conv": two 3x3 convolutions with GroupNorm and ReLU (released detectors).
            "single_conv": one of them, and none on branch 1 (released detectors with a regular pyramid).
            "linear": GroupNorm, linear, GroupNorm, and the first alone on branch 1 (what the published cost
            tables count, and the from-scratch classifier).
            "identity": nothing; for branches of equal width.
        branches: numbers, from 1, of the branches that take part (Table 8); None for all.

    Raises:
        ValueError: when widths and kind do not fit together.
    """

    def __init__(
        self, dims: Sequence[int], kind: MergeKind = "conv", branches: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        members = range(1, len(dims) + 1) if branches is None else sorted(set(branches))
        if not members or not all(1 <= branch <= len(dims) for branch in members):
            raise ValueError(
                f"cannot merge branches {list(members)}: "
                f"expected at least one of the numbers 1 to {len(dims)}"
            )
        out_dim = dims[0]
        if kind == "identity" and any(dims[branch - 1] != out_dim for branch in members):
            raise ValueError(f"merge 'identity' needs branches of one width, got {list(dims)}: use 'conv'")
        if kind != "identity":
            normed = [out_dim, *(dims[branch - 1] for branch in members)] if kind == "linear" else [out_dim]
            for dim in normed:
                if dim % _GROUPS:
                    raise ValueError(
                        f"merge {kind!r} normalises {dim} channels in {_GROUPS} groups: "
                        f"use a multiple of {_GROUPS}"
                    )
        self.out_dim = out_dim
        self.branches = list(members)
        self.transforms = nn.ModuleDict(
            {str(j): _transform(kind, dims[j - 1], out_dim, is_first=j == 1) for j in self.branches}
        )
        # 0-dim as published, not 1-dim: weight decay spares vectors but not these
        self.weights = nn.ParameterDict(
            {str(j): nn.Parameter(torch.ones(())) for j in self.branches} if kind != "identity" else {}
        )

    def fold(self) -> None:
        """Multiply the scalar weights into the norms before them, see :mod:`piip.folding`."""
        for key, weight in list(self.weights.items()):
            layers = list(self.transforms[key].children())
            *_, norm = (layer for layer in layers if isinstance(layer, nn.GroupNorm))
            if weight >= 0 or norm is layers[-1]:  # max(0, w * x) is w * max(0, x) for w >= 0 only
                scale_output(norm, weight)
                del self.weights[key]

    def forward(self, maps: Sequence[Tensor], reference: int) -> Tensor:
        """Merge the branches' maps.

        Args:
            maps: of all branches, each ``(B, h_j, w_j, C_j)``.
            reference: index of the map on whose grid they are merged.

        Returns:
            ``(B, C_1, h, w)``, h and w those of the reference.
        """
        size = maps[reference].shape[1:3]
        merged: Tensor | None = None
        for key, transform in self.transforms.items():
            branch = int(key) - 1
            x = transform(maps[branch].permute(0, 3, 1, 2))  # channels-last (B, C, h, w)
            if branch != reference:
                enlarged = F.interpolate(at_least_float32(x), size=size, mode="bilinear", align_corners=False)
                x = enlarged.to(x.dtype)
            if key in self.weights:
                x = self.weights[key] * x
            merged = x if merged is None else merged + x
        assert merged is not None  # there is at least one member
        return merged
