"""ConvNeXt, whose maps grow coarser and wider on the way (PIIP v2)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from timm.layers import LayerNorm2d
from timm.models.convnext import ConvNeXtBlock
from torch import Tensor, nn

from ..folding import scale_output
from .base import Branch, Pretrained

__all__ = ["ConvNeXtBranch"]

_STEM_STRIDE = 4


class _MapBlock(ConvNeXtBlock):
    """timm's block on a map ``(B, h, w, C)``."""

    gamma: nn.Parameter | None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv_dw(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        y = self.mlp(self.norm(y))
        return x + self.drop_path(y if self.gamma is None else self.gamma * y)

    def fold(self) -> None:
        """Multiply the layer scale into the projection before it, see :mod:`piip.folding`."""
        if self.gamma is not None:
            scale_output(self.mlp.fc2, self.gamma)
            self.gamma = None


class _Downsample(nn.Sequential):
    """Layer norm and a 2x2 convolution of stride 2: ``(B, h, w, C) -> (B, h // 2, w // 2, D)``."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__(nn.LayerNorm(dim, eps=1e-6), nn.Conv2d(dim, out_dim, 2, stride=2))

    def forward(self, x: Tensor) -> Tensor:
        norm, conv = self
        return conv(norm(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class _Stage(nn.Module):
    """Modules of a stage under timm's names; its layers are called one by one.

    The first stage (dim None) has no halving layer.
    """

    def __init__(self, dim: int | None, out_dim: int, rates: Sequence[float], layer_scale: float) -> None:
        super().__init__()
        self.downsample = None if dim is None else _Downsample(dim, out_dim)
        self.blocks = nn.ModuleList(
            _MapBlock(out_dim, drop_path=rate, ls_init_value=layer_scale) for rate in rates
        )

    def layers(self) -> list[nn.Module]:
        """The modules that are called, in order."""
        return [*([] if self.downsample is None else [self.downsample]), *self.blocks]


class ConvNeXtBranch(Branch):
    """A ConvNeXt, stepped block by block; the layer that begins a stage by halving the map counts as a block.

    Stages 1 to 4 have strides 4, 8, 16 and 32. ConvNeXt-T has 21 blocks counted so, S and B have 39. Names of
    parameters are timm's.

    Args:
        dims: channels of the four stages.
        depths: blocks of the four stages, without the halving layers.
        drop_path_rate: stochastic depth rate of the last block; rates grow linearly from 0.
        layer_scale: initial value of the per-channel residual scale.
        pretrained: see :class:`Branch`.
    """

    def __init__(
        self,
        *,
        dims: Sequence[int] = (96, 192, 384, 768),
        depths: Sequence[int] = (3, 3, 9, 3),
        drop_path_rate: float = 0.0,
        layer_scale: float = 1e-6,
        pretrained: Pretrained | None = None,
    ) -> None:
        super().__init__(pretrained)
        if len(dims) != len(depths):
            raise ValueError(f"{len(dims)} widths and {len(depths)} depths: give one of each per stage")
        self.stem = nn.Sequential(
            nn.Conv2d(3, dims[0], _STEM_STRIDE, stride=_STEM_STRIDE), LayerNorm2d(dims[0], eps=1e-6)
        )
        rates = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist()
        ends = list(accumulate(depths))
        stages = [
            _Stage(dims[i - 1] if i else None, dims[i], rates[end - depth : end], layer_scale)
            for i, (depth, end) in enumerate(zip(depths, ends, strict=True))
        ]
        self.stages = nn.ModuleList(stages)
        # published checkpoints hold the classifier's norm, unused here: kept so that they fit, frozen
        self.norm = nn.LayerNorm(dims[-1], eps=1e-6).requires_grad_(False)
        # a plain list: the modules have their names, as in timm, through the stages
        self.blocks = [layer for stage in stages for layer in stage.layers()]
        self._stage_of_block = [i for i, stage in enumerate(stages) for _ in stage.layers()]
        self._dims, self._layer_scale = list(dims), layer_scale
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Truncated normal of 0.02 for every matrix and kernel, as in timm; biases zero, norms one."""
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            if isinstance(module, _MapBlock) and module.gamma is not None:
                nn.init.constant_(module.gamma, self._layer_scale)
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def stage_blocks(self) -> list[tuple[int, int]]:
        """First and last block of each of its four stages, counted from 0."""
        stages = self._stage_of_block
        return [(stages.index(i), len(stages) - 1 - stages[::-1].index(i)) for i in range(len(self.stages))]

    @property
    def patch_size(self) -> int:
        return self.stride(self.depth - 1)

    def channels(self, block: int) -> int:
        return self._dims[self._stage_of_block[block]]

    def stride(self, block: int) -> int:
        return _STEM_STRIDE * 2 ** self._stage_of_block[block]

    def decay_depth(self, parameter: str) -> None:
        """No part in layer-wise learning-rate decay, as in the published recipe."""

    def embed(self, image: Tensor) -> Tensor:
        return self.stem(image.to(next(self.stem.parameters()).dtype)).permute(0, 2, 3, 1)
