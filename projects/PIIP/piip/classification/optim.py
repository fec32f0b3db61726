"""Parameter groups of the published recipe, for `timm.optim.create_optimizer_v2`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

__all__ = ["FasterBesidesBranches"]


@dataclass(frozen=True, kw_only=True)
class FasterBesidesBranches:
    """What is new beside the pretrained branches learns faster; every tensor is decayed, vectors too.

    The branches' own heads count as part of them.

    Attributes:
        lr: of the branches. It has to be told: timm's ``param_group_fn`` gets the model only.
        factor: what is new learns at `factor` times that rate.
    """

    lr: float
    factor: float = 10.0

    def __call__(self, model: nn.Module) -> list[dict[str, Any]]:
        """The groups of a model, those of its branches first."""
        groups: dict[bool, list[nn.Parameter]] = {False: [], True: []}
        for name, parameter in model.named_parameters():
            is_branch = name.startswith(("piip.branches.", "head.norms.", "head.heads."))
            groups[not is_branch].append(parameter)
        return [
            {"params": parameters, "lr": self.lr * (self.factor if new else 1.0)}
            for new, parameters in groups.items()
            if parameters
        ]
