"""Published PIIP-LLaVA configurations become models of this package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..backbone import PIIP
from ..branches import Branch, ConvNeXtBranch
from ..weights.official_config import interaction, stages
from .clip import CLIPBranch
from .tower import PIIPTower, TwoBranchProjector

__all__ = ["build_projector", "build_tower"]

_LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
_BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_RELEASED: dict[str, Mapping[str, Any]] = {  # names on the Hugging Face hub, and timm's
    "OpenGVLab/clip-vit-large-patch14to16-224": {**_LARGE, "image_size": 224, "patch_size": 16},
    "OpenGVLab/clip-vit-large-patch14to16-336": {**_LARGE, "image_size": 336, "patch_size": 16},
    "openai/clip-vit-base-patch16": {**_BASE, "image_size": 224, "patch_size": 16},
    "convnext_base.clip_laiona_augreg_320": {"dims": (128, 256, 512, 1024), "depths": (3, 3, 27, 3)},
    "convnext_large_mlp.clip_laion2b_ft_320": {"dims": (192, 384, 768, 1536), "depths": (3, 3, 27, 3)},
}


def _branch(settings: Mapping[str, Any], sizes: Mapping[str, Any] | None) -> Branch:
    name = str(settings.get("pretrained"))
    sizes = sizes or _RELEASED.get(name)
    if sizes is None:
        raise ValueError(f"{name} is no released model: give its sizes in branch_models")
    kind = settings["model_type"]
    if kind == "convnext_timm":
        return ConvNeXtBranch(dims=sizes["dims"], depths=sizes["depths"])
    if kind != "clip_hf":
        raise ValueError(f"unknown model_type '{kind}': expected 'clip_hf' or 'convnext_timm'")
    if settings.get("patch_size", sizes["patch_size"]) != sizes["patch_size"]:
        raise ValueError(
            f"patch size {settings['patch_size']} of a model with {sizes['patch_size']}: expected the same"
        )
    return CLIPBranch(
        hidden_size=sizes["hidden_size"],
        intermediate_size=sizes["intermediate_size"],
        num_layers=sizes["num_hidden_layers"],
        num_heads=sizes["num_attention_heads"],
        image_size=sizes["image_size"],
        patch_size=sizes["patch_size"],
        hidden_act=sizes.get("hidden_act", "quick_gelu"),
        layer_norm_eps=sizes.get("layer_norm_eps", 1e-5),
        use_class_token=settings.get("use_cls_token", True),
    )


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
    config = model["backbone"]
    given = branch_models or {}
    settings = [config["branch1"], config["branch2"]]
    piip = PIIP(
        [_branch(setting, given.get(f"branch{j}")) for j, setting in enumerate(settings, start=1)],
        [setting["img_size"] for setting in settings],
        stages=[stages(setting) for setting in settings],
        interaction=interaction(config),
        merge=None,
    )
    with_mlp = str(settings[1].get("pretrained")).startswith("convnext_large_mlp")
    return PIIPTower(
        piip, _RELEASED["convnext_large_mlp.clip_laion2b_ft_320"]["dims"][-1] if with_mlp else None
    )


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
