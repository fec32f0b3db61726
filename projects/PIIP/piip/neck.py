"""The published multi-scale stack: from the merged map to strides 4 to 32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from timm.layers import LayerNorm2d
from torch import Tensor, nn

from .backbone import PIIP
from .folding import compose

__all__ = ["DeconvPyramid", "PyramidBackbone", "TappedPyramid", "published_pyramid"]

LEVELS = ("f1", "f2", "f3", "f4")
"""Names of the maps at 1/4, 1/2, 1 and 2 times the stride of the merged map."""


def _deconv(dim: int) -> nn.ConvTranspose2d:
    layer = nn.ConvTranspose2d(dim, dim, kernel_size=2, stride=2)
    nn.init.normal_(layer.weight, std=math.sqrt(2.0 / (4 * dim)))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class DeconvPyramid(nn.Module):
    """Deconvolutions up, max pooling down, all at the width of the merged map.

    f1 is two 2x2 deconvolutions with a norm and GELU between, f2 one, f3 the map itself, f4 its 2x2 maximum.

    Args:
        dims: channels of the maps that f1 and f2 start from.
        norm: between the two deconvolutions of f1: "group" (PIIP) or "layer" (the single-ViT baselines).
        outputs: names of the maps to return.
        extra: names of maps whose parameters exist though they are not returned (the released three-branch
            DINO detectors carry an unused f1).
    """

    scales = (0.25, 0.5, 1, 2)
    """Strides of the levels relative to what they start from."""

    def __init__(
        self,
        dims: tuple[int, int],
        *,
        norm: Literal["group", "layer"] = "group",
        outputs: Sequence[str] = LEVELS,
        extra: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if unknown := set(outputs) - set(LEVELS):
            raise ValueError(f"unknown pyramid levels {sorted(unknown)}: expected some of {list(LEVELS)}")
        self.outputs = [level for level in LEVELS if level in outputs]
        if "f1" in outputs or "f1" in extra:
            between = nn.GroupNorm(32, dims[0]) if norm == "group" else LayerNorm2d(dims[0], eps=1e-6)
            self.f1 = nn.Sequential(_deconv(dims[0]), between, nn.GELU(), _deconv(dims[0]))
        if "f2" in outputs or "f2" in extra:
            self.f2 = _deconv(dims[1])
        self.f3 = nn.Identity()
        self.f4 = nn.MaxPool2d(2)

    def absorb(self, level: str, pointwise: nn.Conv2d) -> bool:
        """Compose the deconvolution that ends a level with a 1x1 convolution that follows it.

        Returns:
            Whether the level ends in a deconvolution. Its map has the convolution's channels then.
        """
        if level == "f1":
            *before, last = self.f1
            assert isinstance(last, nn.ConvTranspose2d)
            self.f1 = nn.Sequential(*before, compose(last, pointwise))
        elif level == "f2":
            self.f2 = compose(self.f2, pointwise)
        return level in ("f1", "f2")

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """Build the pyramid.

        Args:
            maps: what f1, f2, f3 and f4 start from, each ``(B, C, h, w)``: four times the merged map, or four
                maps of growing depth.

        Returns:
            level name -> ``(B, C, h * s, w * s)``, s = 4, 2, 1 and 1/2 (rounded down) for f1 to f4.
        """
        return {
            level: getattr(self, level)(x)
            for level, x in zip(LEVELS, maps, strict=True)
            if level in self.outputs
        }


class TappedPyramid(nn.Module):
    """The tapped maps as they are, where their strides are those of a pyramid already (ConvNeXt)."""

    scales = (1, 1, 1, 1)

    def __init__(self) -> None:
        super().__init__()
        self.outputs = list(LEVELS)

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """Name the maps f1 to f4."""
        return dict(zip(LEVELS, maps, strict=True))


def published_pyramid(
    piip: PIIP,
    *,
    norm: Literal["group", "layer"] = "group",
    outputs: Sequence[str] = LEVELS,
    extra: Sequence[str] = (),
) -> DeconvPyramid | TappedPyramid:
    """The published stack for a PIIP: none where its tapped maps have four strides, else deconvolutions."""
    strides = piip.pyramid_strides()
    if len(set(strides)) == len(strides):
        return TappedPyramid()
    channels = piip.pyramid_channels()
    return DeconvPyramid((channels[0], channels[1]), norm=norm, outputs=outputs, extra=extra)


class PyramidBackbone(nn.Module):
    """PIIP followed by the published stack: the backbone of the released detectors.

    Args:
        piip: the image pyramid. Where it has tapped stages, there are three: f1 and f2 start from the first
            two, f3 is the third and f4 starts from the final map; otherwise all four start from the final
            map.
        pyramid: the stack.
    """

    def __init__(self, piip: PIIP, pyramid: DeconvPyramid | TappedPyramid) -> None:
        super().__init__()
        self.piip = piip
        self.pyramid = pyramid

    def level_channels(self) -> dict[str, int]:
        """Channels of each level of the pyramid."""
        channels = dict(zip(LEVELS, self.piip.pyramid_channels(), strict=True))
        return {level: channels[level] for level in self.pyramid.outputs}

    def level_strides(self) -> dict[str, int]:
        """Input pixels per token, along one side, of each level of the pyramid."""
        strides = zip(LEVELS, self.piip.pyramid_strides(), self.pyramid.scales, strict=True)
        levels = {level: int(stride * scale) for level, stride, scale in strides}
        return {level: levels[level] for level in self.pyramid.outputs}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """From ``(B, 3, H, W)`` to ``{"merged": (B, C, h, w)}`` and the levels of the pyramid."""
        maps = self.piip.forward_pyramid(x)
        merged = maps[-1]
        return {"merged": merged, **self.pyramid(maps if len(maps) > 1 else [merged] * len(LEVELS))}
