"""Published PIIP-LLaVA configurations become models of this package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from ..weights.converters.settings import interaction, stages
from .tower import PIIPTower, TwoBranchProjector, tower_from_settings
from .towers import BRANCH_MODELS, has_pre_logits

__all__ = ["build_projector", "build_tower", "tower_settings"]


def _branch(settings: Mapping[str, Any], sizes: Mapping[str, Any] | None) -> dict[str, Any]:
    name = str(settings.get("pretrained"))
    sizes = sizes or BRANCH_MODELS.get(name)
    if sizes is None:
        raise ValueError(f"{name} is no released model: give its sizes in branch_models")
    kind = settings["model_type"]
    if kind == "convnext_timm":
        return {"family": "convnext", "dims": list(sizes["dims"]), "depths": list(sizes["depths"])}
    if kind != "clip_hf":
        raise ValueError(f"unknown model_type '{kind}': expected 'clip_hf' or 'convnext_timm'")
    pretrained_patch = settings.get("pretrain_patch_size", sizes["patch_size"])
    if pretrained_patch != sizes["patch_size"]:
        raise ValueError(
            f"pretrain_patch_size {pretrained_patch} of a model with patches of {sizes['patch_size']} px: "
            "expected the same"
        )
    return {
        "family": "clip",
        "hidden_size": sizes["hidden_size"],
        "intermediate_size": sizes["intermediate_size"],
        "num_layers": sizes["num_hidden_layers"],
        "num_heads": sizes["num_attention_heads"],
        "image_size": sizes["image_size"],
        "patch_size": settings.get("patch_size", pretrained_patch),
        "pretrain_patch_size": pretrained_patch,
        "hidden_act": sizes.get("hidden_act", "quick_gelu"),
        "layer_norm_eps": sizes.get("layer_norm_eps", 1e-5),
        "use_class_token": settings.get("use_cls_token", True),
    }


def tower_settings(
    model: Mapping[str, Any], branch_models: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """What :func:`piip.multimodal.tower.tower_from_settings` takes, from a published ``model`` dict.

    Args:
        model: the published ``model`` dict, of which ``backbone`` is read.
        branch_models: see :func:`build_tower`.

    Raises:
        ValueError: a setting is not known, or a branch's sizes are missing.
    """
    config = model["backbone"]
    given = branch_models or {}
    branches = [config["branch1"], config["branch2"]]
    last = str(branches[1].get("pretrained"))
    return {
        "branches": [_branch(branch, given.get(f"branch{j}")) for j, branch in enumerate(branches, start=1)],
        "image_sizes": [branch["img_size"] for branch in branches],
        "stages": [[list(stage) for stage in stages(branch)] for branch in branches],
        "interaction": asdict(replace(interaction(config), float32_projections=False)),
        "pre_logits_dim": BRANCH_MODELS[last]["dims"][-1] if has_pre_logits(last) else None,
    }


def build_tower(
    model: Mapping[str, Any], branch_models: Mapping[str, Mapping[str, Any]] | None = None
) -> PIIPTower:
    """Build the vision tower of a released PIIP-LLaVA.

    Args:
        model: the published ``model`` dict, of which ``backbone`` is read.
        branch_models: sizes of branches that are no released model, by "branch1" and "branch2": of a CLIP
            those of its Hugging Face configuration, of a ConvNeXt ``dims`` and ``depths``.

    Returns:
        A module from images ``(B, 3, S, S)`` to two maps ``(B, C_j, h_j, w_j)``, with the state dict of
        :func:`piip.official.convert_tower`.

    Raises:
        ValueError: a setting is not known, or a branch's sizes are missing.
    """
    return tower_from_settings(**tower_settings(model, branch_models))


def build_projector(model: Mapping[str, Any], hidden_size: int) -> TwoBranchProjector:
    """Build the projector of a released PIIP-LLaVA.

    Args:
        model: the published ``model`` dict, of which ``projector`` is read.
        hidden_size: width of the language model.

    Returns:
        A module from the tower's maps to tokens ``(B, h * w, hidden_size)``.

    Raises:
        ValueError: a projector of another type.
    """
    config = model["projector"]
    if config.get("type") != "separate_2branch_v1":
        raise ValueError(f"unknown projector {config.get('type')!r}: expected 'separate_2branch_v1'")
    return TwoBranchProjector(
        (config["dim1"], config["dim2"]),
        hidden_size,
        norm=config.get("norm", "gn"),
        out_shape=config.get("out_shape"),
    )
