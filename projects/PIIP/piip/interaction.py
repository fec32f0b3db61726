"""Interactions: how the branches exchange features after each stage (paper section 3.2, Fig. 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from .cross_attention import AttentionPrecision, DeformableCrossAttention, RegularCrossAttention
from .folding import scale_output

__all__ = [
    "ConvFFN",
    "Injector",
    "Interaction",
    "InteractionConfig",
    "InteractionUnit",
    "Link",
    "resolve_links",
]

Link = tuple[int, int]
"""(source, target): the target branch looks at the source branch. Branches count from 1."""


@dataclass(frozen=True, kw_only=True)
class InteractionConfig:
    """What an interaction is made of; the defaults are those of every released detector.

    Attributes:
        attention: "deformable" or "regular" (dense) cross-attention.
        num_heads: attention heads.
        num_points: sampling points of a head (deformable only).
        deform_ratio: value width as a fraction of the query width (deformable only).
        ffn: whether a ConvFFN follows the attention.
        ffn_ratio: hidden width of the ConvFFN as a fraction of the query width.
        drop_path_rate: stochastic depth on the ConvFFN (the attention has none).
        projection: project the other branch's features to the query width first; without it the attention's
            own projections take them at their own width.
        norm: layer norms before attention and ConvFFN.
        float32_projections: run the linear layers of deformable attention in at least float32, as released
            detectors and classifiers do; without, in half precision its sampling alone is raised to float32,
            as in released vision towers.
        attention_precision: type of what deformable attention samples under autocast. "float32": at
            least that, as released. "autocast": autocast's, as are projections; offsets and weights, which
            say where to look, stay float32.
    """

    attention: Literal["deformable", "regular"] = "deformable"
    num_heads: int = 16
    num_points: int = 4
    deform_ratio: float = 0.5
    ffn: bool = True
    ffn_ratio: float = 0.25
    drop_path_rate: float = 0.4
    projection: bool = True
    norm: bool = True
    float32_projections: bool = True
    attention_precision: AttentionPrecision = "float32"

    def __post_init__(self) -> None:
        if self.attention not in ("deformable", "regular"):
            raise ValueError(f"unknown attention {self.attention!r}: expected 'deformable' or 'regular'")
        if self.attention_precision not in get_args(AttentionPrecision):
            raise ValueError(
                f"unknown attention_precision {self.attention_precision!r}: expected 'float32' or 'autocast'"
            )


class ConvFFN(nn.Module):
    """Linear, depthwise 3x3 convolution, GELU, linear, on a map ``(B, h, w, C)``.

    Args:
        dim: channels in and out.
        hidden_dim: channels between.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.dwconv = nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        x = self.dwconv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.fc2(self.act(x))


class Injector(nn.Module):
    """Adds to one branch what it sees in another.

    ``x = q + ca_gamma * Attention(LN(q), LN(proj(f)))``; ``x + cffn_gamma * DropPath(ConvFFN(LN(x)))``. Both
    gammas, one a channel, start at zero: a new interaction changes nothing.

    Args:
        dim: channels of the branch that looks.
        feat_dim: channels of the branch that is looked at.
        config: see :class:`InteractionConfig`.
    """

    def __init__(self, dim: int, feat_dim: int, config: InteractionConfig) -> None:
        super().__init__()
        self.proj = nn.Linear(feat_dim, dim) if config.projection else nn.Identity()
        feat_dim = dim if config.projection else feat_dim

        def norm(channels: int) -> nn.Module:
            return nn.LayerNorm(channels, eps=1e-6) if config.norm else nn.Identity()

        self.query_norm = norm(dim)
        self.feat_norm = norm(feat_dim)
        if config.attention == "deformable":
            self.attn: nn.Module = DeformableCrossAttention(
                dim,
                feat_dim,
                num_heads=config.num_heads,
                num_points=config.num_points,
                ratio=config.deform_ratio,
                float32_projections=config.float32_projections,
                precision=config.attention_precision,
            )
        else:
            self.attn = RegularCrossAttention(dim, feat_dim, num_heads=config.num_heads)
        self.ca_gamma: nn.Parameter | None = nn.Parameter(torch.zeros(dim))
        self.ffn: ConvFFN | None = None
        if config.ffn:
            self.ffn_norm = norm(dim)
            self.ffn = ConvFFN(dim, int(dim * config.ffn_ratio))
            self.cffn_gamma: nn.Parameter | None = nn.Parameter(torch.zeros(dim))
            self.drop_path = DropPath(config.drop_path_rate)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as published: gammas zero, linear layers truncated normal."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if isinstance(self.attn, DeformableCrossAttention):
            self.attn.reset_parameters()
        for gamma in (self.ca_gamma, self.cffn_gamma if self.ffn is not None else None):
            if gamma is not None:
                nn.init.zeros_(gamma)

    def forward(self, query: Tensor, feat: Tensor) -> Tensor:
        """Update ``query`` ``(B, hq, wq, dim)`` from ``feat`` ``(B, hf, wf, feat_dim)``."""
        seen = self.attn(self.query_norm(query), self.feat_norm(self.proj(feat)))
        x = query + _scaled(self.ca_gamma, seen)
        if self.ffn is None:
            return x
        return x + _scaled(self.cffn_gamma, self.drop_path(self.ffn(self.ffn_norm(x))))

    def fold(self) -> None:
        """Multiply the gammas into the projections before them, see :mod:`piip.folding`."""
        if self.ca_gamma is not None:
            is_deformable = isinstance(self.attn, DeformableCrossAttention)
            scale_output(self.attn.get_submodule("output_proj" if is_deformable else "proj"), self.ca_gamma)
            self.ca_gamma = None
        if self.ffn is not None and self.cffn_gamma is not None:
            scale_output(self.ffn.fc2, self.cffn_gamma)
            self.cffn_gamma = None


def _scaled(gamma: Tensor | None, x: Tensor) -> Tensor:
    """``x`` times a vector over its channels, if there is one left to multiply by."""
    return x if gamma is None else gamma * x


class InteractionUnit(nn.Module):
    """The exchange between one pair of branches, in one direction or both.

    Both directions read the pair as it was before the unit: they could run in parallel.

    Args:
        small_dim: channels of the branch that sees the small image (the larger model).
        large_dim: channels of the branch that sees the large image (the smaller model).
        large_to_small: whether features of the large image feed the branch of the small one.
        small_to_large: the other direction.
        config: see :class:`InteractionConfig`.
    """

    def __init__(
        self,
        small_dim: int,
        large_dim: int,
        large_to_small: bool,
        small_to_large: bool,
        config: InteractionConfig,
    ) -> None:
        super().__init__()
        self.large_to_small = Injector(small_dim, large_dim, config) if large_to_small else None
        self.small_to_large = Injector(large_dim, small_dim, config) if small_to_large else None

    def forward(self, small: Tensor, large: Tensor) -> tuple[Tensor, Tensor]:
        """Update the maps ``(B, h, w, C)`` of the small and of the large image."""
        new_small = small if self.large_to_small is None else self.large_to_small(small, large)
        new_large = large if self.small_to_large is None else self.small_to_large(large, small)
        return new_small, new_large


class Interaction(nn.Module):
    """All exchanges after one stage: one unit for each linked pair of branches.

    Units run from the last pair to the first, that is from the largest images down, each on what the ones
    before it
    left: within a stage, features travel from the largest image to the smallest, but not back.

    Args:
        dims: channels of each branch at this stage, largest model first.
        links: who looks at whom, see :data:`Link`.
        config: see :class:`InteractionConfig`.
    """

    def __init__(self, dims: Sequence[int], links: Sequence[Link], config: InteractionConfig) -> None:
        super().__init__()
        pairs = sorted({(min(link), max(link)) for link in links}, key=lambda pair: pair[::-1], reverse=True)
        self.pairs = pairs
        self.units = nn.ModuleDict(
            {
                f"{small}_{large}": InteractionUnit(
                    dims[small - 1],
                    dims[large - 1],
                    large_to_small=(large, small) in links,
                    small_to_large=(small, large) in links,
                    config=config,
                )
                for small, large in pairs
            }
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Update the branches' maps, each ``(B, h, w, C)``."""
        maps = list(maps)
        for (small, large), unit in zip(self.pairs, self.units.values(), strict=True):
            maps[small - 1], maps[large - 1] = unit(maps[small - 1], maps[large - 1])
        return maps


def resolve_links(links: Literal["adjacent", "all"] | Sequence[Link], num_branches: int) -> list[Link]:
    """The links between ``num_branches`` branches.

    Args:
        links: "adjacent" (both directions between neighbours, the default of the paper), "all" (both
            directions between all pairs, Table 11 type 5), or a list of (source, target) branch numbers,
            counted from 1.

    Returns:
        List of (source, target).

    Raises:
        ValueError: for a link to itself, to a branch that does not exist, or given twice.
    """
    if isinstance(links, str):
        if links not in ("adjacent", "all"):
            raise ValueError(
                f"unknown links {links!r}: expected 'adjacent', 'all' or a list of (source, target)"
            )
        reach = 1 if links == "adjacent" else num_branches
        numbers = range(1, num_branches + 1)
        return [(a, b) for a in numbers for b in numbers if 0 < abs(a - b) <= reach]
    resolved = [(int(source), int(target)) for source, target in links]
    for source, target in resolved:
        if source == target or not all(1 <= branch <= num_branches for branch in (source, target)):
            raise ValueError(
                f"link ({source}, {target}) does not join two of the {num_branches} branches: "
                f"give (source, target), two different numbers from 1 to {num_branches}"
            )
    if len(set(resolved)) != len(resolved):
        raise ValueError(f"links {resolved} name a link twice: list each once")
    return resolved
