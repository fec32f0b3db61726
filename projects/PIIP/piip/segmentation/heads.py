"""UPerNet (arXiv 1807.10221) and the auxiliary FCN head of the released segmentors.

Modules are named as in the release, so that its tensors fit without renaming.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..numerics import at_least_float32

__all__ = ["FCNHead", "Losses", "SegmentationHeads", "UPerNetHead", "resize"]

IGNORED = 255
"""Label of pixels that count neither in losses nor in metrics."""


class Losses(NamedTuple):
    """Cross-entropy of the main and of the auxiliary head, the latter weighted."""

    main: Tensor
    auxiliary: Tensor


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize ``(B, C, h, w)`` bilinearly, without aligned corners, in the same dtype."""
    # traced, the graph must fit other sizes: it always resizes, even to the same size
    if not torch.compiler.is_compiling() and tuple(x.shape[2:]) == tuple(size):
        return x
    resized = F.interpolate(at_least_float32(x), size=tuple(size), mode="bilinear", align_corners=False)
    return resized.to(x.dtype)


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, in_dim: int, dim: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_dim, dim, kernel_size, padding=kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(dim)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


def _classifier(dim: int, num_classes: int) -> nn.Conv2d:
    layer = nn.Conv2d(dim, num_classes, 1)
    nn.init.normal_(layer.weight, std=0.01)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


class UPerNetHead(nn.Module):
    """Pyramid pooling on the coarsest map, a top-down path, and all levels together.

    Args:
        in_dims: channels of the maps, finest first.
        dim: channels of all that follows.
        num_classes: number of logits a pixel.
        pool_scales: sides of the pooled maps.
        dropout: rate at which whole channels are dropped before the last layer.
    """

    def __init__(
        self,
        in_dims: Sequence[int],
        dim: int,
        num_classes: int,
        *,
        pool_scales: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), ConvNorm(in_dims[-1], dim, 1)) for scale in pool_scales
        )
        self.bottleneck = ConvNorm(in_dims[-1] + len(pool_scales) * dim, dim, 3)
        self.lateral_convs = nn.ModuleList(ConvNorm(in_dim, dim, 1) for in_dim in in_dims[:-1])
        self.fpn_convs = nn.ModuleList(ConvNorm(dim, dim, 3) for _ in in_dims[:-1])
        self.fpn_bottleneck = ConvNorm(len(in_dims) * dim, dim, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = _classifier(dim, num_classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """From maps ``(B, C_i, h_i, w_i)``, finest first, to logits ``(B, classes, h_0, w_0)``."""
        coarsest = maps[-1]
        pooled = [resize(module(coarsest), coarsest.shape[2:]) for module in self.psp_modules]
        levels = [conv(x) for conv, x in zip(self.lateral_convs, maps, strict=False)]
        levels.append(self.bottleneck(torch.cat([coarsest, *pooled], dim=1)))
        for index in range(len(levels) - 1, 0, -1):
            levels[index - 1] = levels[index - 1] + resize(levels[index], levels[index - 1].shape[2:])
        refined = [conv(x) for conv, x in zip(self.fpn_convs, levels, strict=False)]
        size = refined[0].shape[2:]
        joined = torch.cat([resize(x, size) for x in (*refined, levels[-1])], dim=1)
        logits: Tensor = self.conv_seg(self.dropout(self.fpn_bottleneck(joined)))
        return logits


class FCNHead(nn.Module):
    """3x3 convolutions on one map.

    Args:
        in_dim: channels of the map.
        dim: channels of the convolutions.
        num_classes: number of logits a pixel.
        num_convs: how many convolutions.
        dropout: as in :class:`UPerNetHead`.
    """

    def __init__(
        self, in_dim: int, dim: int, num_classes: int, *, num_convs: int = 1, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.convs = nn.Sequential(*(ConvNorm(dim if i else in_dim, dim, 3) for i in range(num_convs)))
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = _classifier(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """From a map ``(B, C, h, w)`` to logits ``(B, classes, h, w)``."""
        logits: Tensor = self.conv_seg(self.dropout(self.convs(x)))
        return logits


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over all pixels. Ignored pixels count in the divisor, as released."""
    enlarged = resize(logits, labels.shape[1:])
    return F.cross_entropy(enlarged, labels, ignore_index=IGNORED, reduction="sum") / labels.numel()


class SegmentationHeads(nn.Module):
    """The main head on all maps and the auxiliary one on one of them.

    Args:
        decode_head: takes the maps.
        auxiliary_head: takes one of them; it helps training only.
        auxiliary_index: which.
        auxiliary_weight: of its loss.
    """

    def __init__(
        self,
        decode_head: UPerNetHead,
        auxiliary_head: FCNHead,
        *,
        auxiliary_index: int = 2,
        weight: float = 1.0,
        auxiliary_weight: float = 0.4,
    ) -> None:
        super().__init__()
        self.decode_head, self.auxiliary_head = decode_head, auxiliary_head
        self.auxiliary_index = auxiliary_index
        self.weight, self.auxiliary_weight = weight, auxiliary_weight

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits of both heads, each at its own resolution, from maps ``(B, C_i, h_i, w_i)``."""
        return self.decode_head(maps), self.auxiliary_head(maps[self.auxiliary_index])

    def losses(self, maps: Sequence[Tensor], labels: Tensor) -> Losses:
        """Cross-entropy of both heads, on logits enlarged to the labels.

        Args:
            maps: finest first.
            labels: classes ``(B, H, W)`` or ``(B, 1, H, W)``, 255 where a pixel is ignored.

        Raises:
            ValueError: a label is no class.
        """
        labels = labels.squeeze(1).long() if labels.ndim == 4 else labels.long()
        classes = self.decode_head.conv_seg.out_channels
        if bool(((labels != IGNORED) & ((labels < 0) | (labels >= classes))).any()):
            low, high = labels.min(), labels[labels != IGNORED].max()
            raise ValueError(
                f"labels hold {high} and {low}: expected 0 to {classes - 1}, or {IGNORED} for ignored pixels"
            )
        main, auxiliary = self(maps)
        return Losses(
            self.weight * _cross_entropy(main, labels),
            self.auxiliary_weight * _cross_entropy(auxiliary, labels),
        )
