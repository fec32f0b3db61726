"""From a backbone's maps to the levels of DINO's encoder."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

__all__ = ["ChannelMapper"]


class _ConvNorm(nn.Module):
    def __init__(self, in_dim: int, dim: int, kernel_size: int, stride: int, num_groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_dim, dim, kernel_size, stride, padding=kernel_size // 2, bias=False)
        self.norm = nn.GroupNorm(num_groups, dim)
        nn.init.xavier_uniform_(self.conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class ChannelMapper(nn.Module):
    """A 1x1 convolution and GroupNorm per map; further levels by 3x3 convolutions of stride 2.

    The first further level is computed from the backbone's last map, later ones from the level before.

    Args:
        in_dims: channels of the backbone's maps.
        dim: channels of every level.
        num_levels: at least as many as maps.
        num_groups: of the norms.
    """

    def __init__(self, in_dims: Sequence[int], dim: int, num_levels: int, num_groups: int = 32) -> None:
        super().__init__()
        if num_levels < len(in_dims):
            raise ValueError(f"{num_levels} levels for {len(in_dims)} maps: give one a map at least")
        self.convs = nn.ModuleList(_ConvNorm(in_dim, dim, 1, 1, num_groups) for in_dim in in_dims)
        self.extra_convs = nn.ModuleList(
            _ConvNorm(dim if extra else in_dims[-1], dim, 3, 2, num_groups)
            for extra in range(num_levels - len(in_dims))
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """From maps ``(B, C_i, h_i, w_i)`` to levels ``(B, dim, h_i, w_i)``, finest first."""
        if len(maps) != len(self.convs):
            raise ValueError(f"{len(maps)} maps for a neck of {len(self.convs)}")
        levels = [conv(x) for conv, x in zip(self.convs, maps, strict=True)]
        source = maps[-1]
        for conv in self.extra_convs:
            source = conv(source)
            levels.append(source)
        return levels
