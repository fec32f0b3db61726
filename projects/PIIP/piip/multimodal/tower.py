"""The vision tower of PIIP-LLaVA and the projector from its maps to tokens of a language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..backbone import PIIP
from ..branches import Branch, CLIPBranch, ConvNeXtBranch
from ..interaction import InteractionConfig
from ..numerics import at_least_float32

__all__ = ["FAMILIES", "PIIPTower", "TwoBranchProjector", "resize_map", "tower_from_settings"]

FAMILIES: dict[str, type[Branch]] = {"clip": CLIPBranch, "convnext": ConvNeXtBranch}
"""Families of branches that released towers are made of."""


class PIIPTower(nn.Module):
    """A PIIP of two branches that are not merged.

    Args:
        piip: with ``merge=None``.
        pre_logits_dim: width of a layer that the timm model of branch 2 has in its head; nothing uses it, but
            released checkpoints carry it. None for models without.
    """

    def __init__(self, piip: PIIP, pre_logits_dim: int | None = None) -> None:
        super().__init__()
        self.piip = piip
        self.pre_logits = None
        if pre_logits_dim is not None:
            self.pre_logits = nn.Linear(pre_logits_dim, pre_logits_dim).requires_grad_(False)

    def freeze_unused(self) -> None:
        """Freeze tensors that are in checkpoints but unused: DDP would wait for their gradients."""
        unused = [
            branch.post_layernorm if isinstance(branch, CLIPBranch) else branch.norm
            for branch in self.piip.branches
            if isinstance(branch, CLIPBranch | ConvNeXtBranch)
        ]
        for module in (*unused, self.pre_logits):
            if module is not None:
                module.requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """From images ``(B, 3, S, S)`` to the maps of both branches, ``(B, C_j, h_j, w_j)``.

        Images may be of higher precision than the weights: they are resized before they are rounded.
        """
        first, second = self.piip.forward_branches(at_least_float32(images))
        return first.permute(0, 3, 1, 2), second.permute(0, 3, 1, 2)


def tower_from_settings(
    *,
    branches: Sequence[Mapping[str, Any]],
    image_sizes: Sequence[int],
    stages: Sequence[Sequence[Sequence[int]]],
    interaction: Mapping[str, Any],
    pre_logits_dim: int | None = None,
) -> PIIPTower:
    """Build a tower from plain values, as in a configuration file.

    Args:
        branches: of each branch its "family", "clip" or "convnext", and the arguments of :class:`CLIPBranch`
            or :class:`ConvNeXtBranch`.
        image_sizes: of the branches, in pixels.
        stages: first and last block of each stage of each branch.
        interaction: the fields of :class:`piip.InteractionConfig`.
        pre_logits_dim: see :class:`PIIPTower`.

    Raises:
        ValueError: there are not two branches, or a setting is not known.
    """
    if len(branches) != 2:
        raise ValueError(f"a vision tower of {len(branches)} branches: expected 2")
    built = []
    for number, branch in enumerate(branches, start=1):
        sizes = dict(branch)
        family = sizes.pop("family", None)
        if family not in FAMILIES:
            raise ValueError(
                f"unknown family {family!r} of branch {number}: expected one of {', '.join(FAMILIES)}"
            )
        built.append(FAMILIES[family](**sizes))
    piip = PIIP(
        built,
        image_sizes,
        stages=[[(first, last) for first, last in ranges] for ranges in stages],
        interaction=InteractionConfig(**interaction),
        merge=None,
    )
    return PIIPTower(piip, pre_logits_dim)


def resize_map(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize a map ``(B, C, h, w)`` bilinearly, in at least float32, to ``size``, height and width."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    resized = F.interpolate(at_least_float32(x), size=tuple(size), mode="bilinear", align_corners=False)
    return resized.to(x.dtype)


class TwoBranchProjector(nn.Module):
    """Linear layer, norm, GELU and linear layer per branch, summed (the published "separate_2branch_v1").

    The first map is resized to the grid of the second. Layers are numbered as in the release.

    Args:
        dims: channels of the two maps.
        hidden_size: width of the language model.
        norm: "gn", GroupNorm of 32 groups over the whole map, or "ln", over channels and without parameters.
        out_shape: grid that both maps are resized to; None for that of the second.
    """

    def __init__(
        self,
        dims: tuple[int, int],
        hidden_size: int,
        *,
        norm: str = "gn",
        out_shape: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if norm not in ("gn", "ln"):
            raise ValueError(f"unknown norm '{norm}' of the projector: expected 'gn' or 'ln'")
        self.norm, self.hidden_size, self.out_shape = norm, hidden_size, out_shape
        self.branch1, self.branch2 = (self._layers(dim) for dim in dims)

    def _layers(self, dim: int) -> nn.ModuleDict:
        size = self.hidden_size
        if self.norm == "ln":
            return nn.ModuleDict({"1": nn.Linear(dim, size), "5": nn.Linear(size, size)})
        return nn.ModuleDict(
            {"1": nn.Linear(dim, size), "3": nn.GroupNorm(32, size), "6": nn.Linear(size, size)}
        )

    def _project(self, layers: nn.ModuleDict, x: Tensor) -> Tensor:
        x = layers["1"](x.permute(0, 2, 3, 1))  # (B, h, w, hidden)
        if self.norm == "gn":
            x = layers["3"](x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        else:
            x = F.layer_norm(x, x.shape[-1:], eps=1e-5)
        return layers["6" if self.norm == "gn" else "5"](F.gelu(x))

    def forward(self, maps: tuple[Tensor, Tensor]) -> Tensor:
        """From maps ``(B, C_j, h_j, w_j)`` to tokens ``(B, h * w, hidden_size)``, row by row."""
        size = self.out_shape or tuple(maps[1].shape[2:])
        resized = [resize_map(x, size) for x in maps]
        total = self._project(self.branch1, resized[0]) + self._project(self.branch2, resized[1])
        return total.flatten(1, 2)
