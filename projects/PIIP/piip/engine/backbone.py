"""PIIP as a Detectron2 backbone, with the neck of ViTDet or that of the released detectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import FPN, Backbone, SimpleFeaturePyramid
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import Tensor, nn

from ..backbone import PIIP
from ..folding import compose
from ..neck import LEVELS, DeconvPyramid, PyramidBackbone, published_pyramid

__all__ = [
    "MergedMapBackbone",
    "ReleasedFPN",
    "ReleasedPyramidBackbone",
    "SimplePyramid",
    "piip_backbone",
    "released_maps",
]


class MergedMapBackbone(Backbone):
    """The merged map of a PIIP as the one feature "merged" of a Detectron2 backbone."""

    def __init__(self, piip: PIIP) -> None:
        super().__init__()
        self.piip = piip

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """``(B, 3, H, W)`` -> ``{"merged": (B, C, H / stride, W / stride)}``."""
        return {"merged": self.piip(x)}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {"merged": ShapeSpec(channels=self.piip.out_channels, stride=self.piip.stride)}


class ReleasedPyramidBackbone(PyramidBackbone, Backbone):
    """The backbone of the released detectors and segmentors, "f1" to "f4", at strides 4 to 32.

    Where the largest image is larger than the input, strides are fractions, and not told.
    """

    @property
    def size_divisibility(self) -> int:
        return _exact_divisibility(self.piip, max(self.level_strides().values()))

    def output_shape(self) -> dict[str, ShapeSpec]:
        plain = max(self.piip.image_sizes) == self.piip.input_size
        strides = self.level_strides()
        return {
            level: ShapeSpec(channels=channels, stride=strides[level] if plain else None)
            for level, channels in self.level_channels().items()
        }


class _PaddedMixin:
    """Says how inputs must be padded, in the two ways Detectron2 asks.

    Detectron2's own pyramids name the first constraint "size_divisiblity", which nothing reads.
    """

    _size_divisibility: int
    _square_pad: int

    @property
    def size_divisibility(self) -> int:
        return self._size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        return {"size_divisibility": self._size_divisibility, "square_size": self._square_pad}


def _after_convolution(conv: nn.Module) -> nn.Module:
    """What Detectron2's convolution does once it has convolved."""
    after = [part for part in (getattr(conv, "norm", None), getattr(conv, "activation", None)) if part]
    return nn.Sequential(*after) if after else nn.Identity()


def _is_pointwise(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.kernel_size == layer.stride == (1, 1) and layer.groups == 1


class SimplePyramid(_PaddedMixin, SimpleFeaturePyramid):
    """ViTDet's simple feature pyramid, padding its input as ``size_divisibility`` says."""

    def fold(self) -> None:
        """Compose deconvolutions with the 1x1 convolutions after them, see :mod:`piip.folding`."""
        for stage in self.stages:
            for index in range(len(stage) - 1):
                if isinstance(stage[index], nn.ConvTranspose2d) and _is_pointwise(stage[index + 1]):
                    after = _after_convolution(stage[index + 1])
                    stage[index], stage[index + 1] = compose(stage[index], stage[index + 1]), after


class ReleasedFPN(_PaddedMixin, FPN):
    """Detectron2's FPN, whose top-down path enlarges to the size of the next level, as mmdetection's does.

    Detectron2's own doubles the size, which fails where a level has an odd number of rows or columns.
    """

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """``(B, 3, H, W)`` -> ``{"p2": ..., ..., "p6": ...}`` of ``out_channels``, at strides 4 to 64."""
        features = self.bottom_up(x)
        coarse: Tensor | None = None
        results: list[Tensor] = []
        for name, lateral, output in zip(
            reversed(self.in_features), self.lateral_convs, self.output_convs, strict=True
        ):
            fine = lateral(features[name])
            if coarse is not None:
                fine = fine + F.interpolate(coarse, size=fine.shape[2:], mode="nearest")
            results.insert(0, output(fine))
            coarse = fine
        if self.top_block is not None:
            results.extend(self.top_block(results[-1]))
        return dict(zip(self._out_features, results, strict=True))

    def fold(self) -> None:
        """Compose the last deconvolutions with the lateral 1x1 convolutions, see :mod:`piip.folding`.

        That leaves 93 of the 151 G multiply-adds of PIIP-TSB's neck at 1120 px.
        """
        pyramid = getattr(self.bottom_up, "pyramid", None)
        if not isinstance(pyramid, DeconvPyramid):
            return
        names = {child: name for name, child in self.named_children()}
        for index, level in enumerate(self.in_features):
            place = len(self.in_features) - 1 - index  # lateral_convs runs from the coarsest level down
            lateral = self.lateral_convs[place]
            if _is_pointwise(lateral) and pyramid.absorb(level, lateral):
                self.lateral_convs[place] = _after_convolution(lateral)
                setattr(self, names[lateral], self.lateral_convs[place])


def _exact_divisibility(piip: PIIP, coarsest_stride: int) -> int:
    """Padding that gives every branch whole patches and every level whole cells, where sizes allow.

    Image sizes without a common divisor to speak of would ask for padding beyond the image itself; the levels
    alone are served then.
    """
    exact = math.lcm(piip.size_divisibility, coarsest_stride)
    return exact if exact <= piip.input_size else coarsest_stride


def released_maps(
    piip: PIIP,
    *,
    pyramid_norm: Literal["group", "layer"] = "group",
    outputs: Sequence[str] = LEVELS,
    extra: Sequence[str] = (),
) -> ReleasedPyramidBackbone:
    """The backbone of the released segmentors and DINO detectors: the maps, without an FPN.

    Args:
        piip: the image pyramid network.
        pyramid_norm: as in :func:`piip_backbone`.
        outputs, extra: as in :class:`piip.neck.DeconvPyramid`.
    """
    pyramid = published_pyramid(piip, norm=pyramid_norm, outputs=outputs, extra=extra)
    return ReleasedPyramidBackbone(piip, pyramid)


def piip_backbone(
    piip: PIIP,
    *,
    neck: Literal["simple", "released"] = "simple",
    out_channels: int = 256,
    scale_factors: Sequence[float] = (4.0, 2.0, 1.0, 0.5),
    norm: str = "LN",
    top_block: nn.Module | None = None,
    size_divisibility: int | None = None,
    square_pad: int = 0,
    pyramid_norm: Literal["group", "layer"] = "group",
) -> Backbone:
    """A Detectron2 backbone from a PIIP: levels "p2", "p3", ... of ``out_channels`` channels.

    Args:
        piip: the image pyramid network.
        neck: "simple", ViTDet's feature pyramid on the merged map, or "released", the deconvolution stack at
            full width followed by an FPN of the released detectors.
        out_channels: channels of every level.
        scale_factors: sizes of the levels relative to the merged map ("simple" only; "released" has 4, 2, 1,
            1/2).
        norm: norm of the convolutions of the simple pyramid ("simple" only; "released" has none).
        top_block: what makes the level above the coarsest; None for the usual maximum of p5, where there is a
            p5.
        size_divisibility: inputs are padded to multiples of it; None for the smallest that leaves no branch
            with a fraction of a patch.
        square_pad: pad inputs to a square of this side; 0 for none.
        pyramid_norm: norm inside the deconvolution stack ("released" only): "group" for PIIP, "layer" for the
            published single-ViT baselines.

    Raises:
        ValueError: for an unknown neck.
    """
    if neck == "released":
        bottom_up = ReleasedPyramidBackbone(piip, published_pyramid(piip, norm=pyramid_norm))
        backbone = ReleasedFPN(
            bottom_up,
            list(LEVELS),
            out_channels,
            top_block=top_block or LastLevelMaxPool(),
            square_pad=square_pad,
        )
    elif neck == "simple":
        if top_block is None and piip.stride / scale_factors[-1] == 32:
            top_block = LastLevelMaxPool()
        backbone = SimplePyramid(
            MergedMapBackbone(piip),
            "merged",
            out_channels,
            list(scale_factors),
            top_block=top_block,
            norm=norm,
            square_pad=square_pad,
        )
    else:
        raise ValueError(f"unknown neck {neck!r}: expected 'simple' or 'released'")
    coarsest = max(shape.stride for shape in backbone.output_shape().values())
    if backbone.top_block is not None:
        coarsest //= 2**backbone.top_block.num_levels  # a pooled extra level needs no padding of its own
    if size_divisibility is None:
        size_divisibility = _exact_divisibility(piip, coarsest)
    backbone._size_divisibility = size_divisibility
    return backbone
