"""Published classifier configurations become models of this package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..backbone import PIIP
from ..branches import ViTBranch
from ..weights.converters.settings import interaction, stages, windows
from .classifier import PIIPClassifier

__all__ = ["build_classifier"]


def _branch(config: Mapping[str, Any]) -> ViTBranch:
    """A branch; its position table has the grid of its own image size, so that nothing is resized there."""
    is_augreg = config.get("model_type") == "augreg"
    return ViTBranch(
        embed_dim=config["embed_dim"],
        depth=config["depth"],
        num_heads=config["num_heads"],
        patch_size=config.get("patch_size", 16),
        mlp_ratio=config.get("mlp_ratio", 4),
        qkv_bias=config.get("qkv_bias", True),
        pretrain_image_size=config["img_size"],
        window_sizes=windows(config),
        pad_before_qkv=config.get("use_flash_attn", True),
        drop_path_rate=config.get("drop_path_rate", 0.0),
        layer_scale=None if is_augreg else config.get("init_scale", 1.0),
        pos_embed_has_cls=is_augreg,
        class_token=config.get("use_cls_token", False),
    )


def build_classifier(config: Mapping[str, Any]) -> PIIPClassifier:
    """Build a published three-branch classifier.

    Args:
        config: the published settings. ``separate_head`` true: a pretrained head of 1000 classes a branch,
            whatever ``num_classes`` says, their logits averaged; false: one head of ``num_classes`` on the
            merged map.

    Returns:
        A module from ``(B, 3, H, W)`` to logits ``(B, classes)``, with the state dict of
        :func:`piip.official.convert_classifier`.

    Raises:
        ValueError: a setting is not known, or a class token is asked for where windows are.
    """
    settings = [config[f"branch{number}"] for number in (1, 2, 3)]
    separate = config.get("separate_head", False)
    piip = PIIP(
        [_branch(setting) for setting in settings],
        [setting["img_size"] for setting in settings],
        stages=[stages(setting) for setting in settings],
        interaction=interaction(config),
        merge=None if separate else "linear",
        grad_checkpointing=bool(settings[0].get("with_cp", False)),
    )
    return PIIPClassifier(piip, 1000 if separate else config.get("num_classes", 1000))
