"""The published costs of PIIP-LLaVA's vision towers, counted again, and what they really cost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from piip.backbone import PIIP
from piip.branches import Branch, CLIPBranch, ConvNeXtBranch
from piip.flops.actual import actual_cost
from piip.flops.report import Part
from piip.flops.tracing import build_on_meta
from piip.interaction import InteractionConfig
from piip.multimodal.towers import BRANCH_MODELS, stages_of
from piip.weights.zoo import PublishedModel, models_of

from .published_tower import published_tower_cost

__all__ = ["build_released_tower", "reproduce_llava"]

_PARTS = ("branch1", "branch2", "interactions")
_COUNTED_INTERACTIONS = {2, 12}  # the figures of models with 24 are those with 12


def _branch(name: str) -> Branch:
    sizes = BRANCH_MODELS[name]
    if "dims" in sizes:
        return ConvNeXtBranch(dims=sizes["dims"], depths=sizes["depths"])
    return CLIPBranch(
        hidden_size=sizes["hidden_size"],
        intermediate_size=sizes["intermediate_size"],
        num_layers=sizes["num_hidden_layers"],
        num_heads=sizes["num_attention_heads"],
        image_size=sizes["image_size"],
        patch_size=sizes["patch_size"],
    )


def build_released_tower(released: PublishedModel) -> PIIP:
    """The network of a released tower, without what its checkpoints carry and nothing uses."""
    return PIIP(
        [_branch(name) for name in released.branches],
        released.image_sizes[::-1],
        stages=stages_of(released),
        interaction=InteractionConfig(float32_projections=False),
        merge=None,
    )


def reproduce_llava() -> Iterator[dict[str, Any]]:
    """Count the tower of every released PIIP-LLaVA.

    Yields:
        A dict for each: "model", "resolution", "interactions" (their number), "gflops_published", "gflops" in
        published accounting, "gflops_PART" and "gflops_actual_PART" for its parts branch1, branch2 and
        interactions, "gflops_actual", "params_m", "status".
    """
    counted: dict[tuple[Any, ...], tuple[Part, Part]] = {}
    for released in models_of("multimodal"):
        tower = (released.branches, released.image_sizes, released.num_interactions)
        if tower not in counted:  # models of two sizes may look through the same one
            with build_on_meta():
                piip = build_released_tower(released)
            counted[tower] = published_tower_cost(piip).total, actual_cost(piip).total
        published, actual = counted[tower]
        if int(published.gflops) == released.gflops_published:  # figures were cut off, not rounded
            status = "reproduced"
        elif released.num_interactions not in _COUNTED_INTERACTIONS:
            status = "the published figure is that of 12 interactions"
        else:
            status = "GFLOPs differ"
        yield {
            "model": released.name,
            "resolution": released.sizes,
            "interactions": released.num_interactions,
            "gflops_published": released.gflops_published,
            "gflops": published.gflops,
            **{f"gflops_{part}": published.parts[part].gflops for part in _PARTS},
            "gflops_actual": actual.gflops,
            **{f"gflops_actual_{part}": actual.parts[part].gflops for part in _PARTS},
            "params_m": published.params_m,
            "status": status,
        }
