"""PIIP as an image classifier: the branches' own heads averaged, or one head on the merged map."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from ..backbone import PIIP
from ..engine.optim import layer_numbers

__all__ = ["BranchHeads", "MergedHead", "PIIPClassifier"]


class BranchHeads(nn.Module):
    """A norm and a linear layer for each branch; the logits are averaged (paper section 4.4).

    Both come from the branches' pretraining. Each looks at the first token of the branch's map, the top-left
    patch: the released code sets the class token aside before it takes "token 0", and the released weights
    were trained that way.

    Args:
        dims: channels of each branch's map.
        num_classes: of each head.
    """

    stays_float32 = True  # in piip.optimize_for_inference: of 1000 logits 8 bits would make some equal

    def __init__(self, dims: list[int], num_classes: int = 1000) -> None:
        super().__init__()
        self.num_classes, self.num_features = num_classes, sum(dims)
        self.norms = nn.ModuleList(nn.LayerNorm(dim, eps=1e-6) for dim in dims)
        self.heads = nn.ModuleList(nn.Linear(dim, num_classes) for dim in dims if num_classes)
        for head in self.heads:
            nn.init.trunc_normal_(cast(nn.Linear, head).weight, std=0.02)
            nn.init.zeros_(cast(nn.Linear, head).bias)

    def _tokens(self, maps: list[Tensor]) -> list[Tensor]:
        return [norm(x[:, 0, 0]) for x, norm in zip(maps, self.norms, strict=True)]

    def branch_logits(self, maps: list[Tensor]) -> list[Tensor]:
        """Logits ``(B, classes)`` of each branch, from its map ``(B, h, w, C)``."""
        return [head(token) for token, head in zip(self._tokens(maps), self.heads, strict=True)]

    def forward(self, maps: list[Tensor], *, pre_logits: bool = False) -> Tensor:
        """Mean of the branches' logits, ``(B, classes)``; or the branches' normed tokens side by side."""
        if pre_logits or not self.heads:
            return torch.cat(self._tokens(maps), dim=1)
        return torch.stack(self.branch_logits(maps)).mean(dim=0)


class MergedHead(nn.Module):
    """Norm, mean over all places, and a linear layer on the merged map (paper appendix C).

    Args:
        dim: channels of the merged map.
        num_classes: number of logits.
    """

    stays_float32 = True  # as in BranchHeads

    def __init__(self, dim: int, num_classes: int = 1000) -> None:
        super().__init__()
        self.num_classes, self.num_features = num_classes, dim
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head: nn.Linear | nn.Identity = nn.Identity()
        if num_classes:
            self.head = nn.Linear(dim, num_classes)
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    def forward(self, merged: Tensor, *, pre_logits: bool = False) -> Tensor:
        """From the merged map ``(B, C, h, w)`` to logits ``(B, classes)``, or what they are made from."""
        tokens = self.norm(merged.flatten(2).transpose(1, 2))  # (B, h*w, C)
        pooled = tokens.mean(dim=1)
        return pooled if pre_logits else self.head(pooled)


class PIIPClassifier(nn.Module):
    """A PIIP with a classifier.

    Args:
        piip: with ``merge="linear"`` for one head on the merged map, with ``merge=None`` for a head a branch.
        num_classes: number of logits; 0 for what they are made from, ``(B, num_features)``: the normed mean
            of the merged map, or the normed tokens of all branches side by side.
    """

    def __init__(self, piip: PIIP, num_classes: int = 1000) -> None:
        super().__init__()
        self.piip = piip
        self.head: BranchHeads | MergedHead
        self.reset_classifier(num_classes)

    @property
    def num_classes(self) -> int:
        """Number of logits."""
        return self.head.num_classes

    @property
    def num_features(self) -> int:
        """Width of what the logits are made from."""
        return self.head.num_features

    def reset_classifier(self, num_classes: int) -> None:
        """Start the classifier anew, for other classes, 0 for none; its norms stay as they are."""
        device = next(self.piip.parameters()).device
        if self.piip.merge is None:
            head: nn.Module = BranchHeads(self.piip.stage_channels(self.piip.num_stages - 1), num_classes)
        else:
            head = MergedHead(self.piip.out_channels, num_classes)
        for part in ("norm", "norms"):
            if hasattr(self, "head") and hasattr(self.head, part):
                setattr(head, part, getattr(self.head, part))
        self.head = cast("BranchHeads | MergedHead", head.to(device))

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """The layer of a parameter by its name, for timm's layer-wise learning rates.

        Args:
            coarse: 0 for the branches and 1 for all else, instead of :func:`piip.engine.optim.layer_numbers`.
        """
        if coarse:
            return lambda name: int(not name.startswith("piip.branches."))
        return layer_numbers(self).__getitem__

    def no_weight_decay(self) -> set[str]:
        """Patterns of the names of parameters that timm's optimizers should not decay, besides vectors."""
        return {"piip.branches.*.pos_embed", "piip.branches.*.cls_token"}

    def get_classifier(self) -> nn.Module:
        """The head: a linear layer a branch, or one."""
        return self.head

    def forward_features(self, x: Tensor) -> Tensor | list[Tensor]:
        """What the head looks at: the merged map ``(B, C, h, w)``, or each branch's ``(B, h, w, C)``."""
        return self.piip(x) if self.piip.merge is not None else self.piip.forward_branches(x)

    def forward_head(self, features: Tensor | list[Tensor], pre_logits: bool = False) -> Tensor:
        """From :meth:`forward_features` to logits ``(B, classes)``, or ``(B, num_features)`` before them."""
        logits: Tensor = self.head(features, pre_logits=pre_logits)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """From normalised images ``(B, 3, H, W)`` to logits ``(B, classes)``.

        Raises:
            ValueError: a branch's image would be smaller than one patch.
        """
        return self.forward_head(self.forward_features(x))
