"""Published backbone configurations become models of this package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..backbone import PIIP
from ..branches import BEiTBranch, Branch, ConvNeXtBranch, UniPerceiverBranch, ViTBranch
from ..branches.published import CONVNEXT_SIZES
from ..neck import PyramidBackbone, published_pyramid
from ..weights.converters.settings import interaction, stages, windows

__all__ = ["build_backbone", "build_branch"]

_NUM_BRANCHES = {"PIIPTwoBranch": 2, "PIIPThreeBranch": 3, "PIIPFourBranch": 4}
_SINGLE = {"vit_models": "deit", "InternViT6B": "intern", "ConvNextHFWrapper": "convnext"}
_CONVNEXTS = {  # names on the Hugging Face hub
    f"facebook/convnext-{name}-224": CONVNEXT_SIZES[letter]
    for name, letter in (("tiny", "T"), ("small", "S"), ("base", "B"))
}


def _family(pretrained: str) -> str:
    """The model family, which the published code reads out of the name of the weights' file."""
    for mark, family in (
        ("deit", "deit"),
        ("beit", "beit"),
        ("perceiver", "perceiver"),
        ("convnext", "convnext"),
    ):
        if mark in pretrained:
            return family
    return "intern"


def _build_convnext(config: Mapping[str, Any]) -> ConvNeXtBranch:
    name = config["pretrained"]
    if name not in _CONVNEXTS:
        raise ValueError(f"unknown ConvNeXt {name!r}: expected one of {list(_CONVNEXTS)}")
    dims, depths = _CONVNEXTS[name]
    return ConvNeXtBranch(dims=dims, depths=depths, drop_path_rate=config.get("drop_path_rate", 0.0))


def _common(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that all transformers have."""
    return {
        "embed_dim": config["embed_dim"],
        "depth": config["depth"],
        "num_heads": config["num_heads"],
        "patch_size": config.get("patch_size", 16),
        "mlp_ratio": config.get("mlp_ratio", 4),
        "drop_path_rate": config.get("drop_path_rate", 0.0),
    }


def build_branch(config: Mapping[str, Any], family: str | None = None) -> Branch:
    """Build a branch from its published settings.

    Args:
        config: a ``branchJ`` dict of a published configuration.
        family: "deit", "beit", "perceiver", "convnext" or "intern" (MAE, DINOv2, AugReg, InternViT); None
            reads it from ``config["pretrained"]`` as the published code does.

    Raises:
        ValueError: for another family, or an unknown ConvNeXt.
    """
    family = family or _family(str(config.get("pretrained") or ""))
    if family == "convnext":
        return _build_convnext(config)
    if family == "beit":
        sizes = [size for size in windows(config) if size is not None]
        return BEiTBranch(**_common(config), window_sizes=sizes, layer_scale=config.get("init_values"))
    if family == "perceiver":
        pretrain_size = config.get("pretrain_img_size", 224)
        return UniPerceiverBranch(
            **_common(config), window_sizes=windows(config), pretrain_image_size=pretrain_size
        )
    if family not in ("deit", "intern"):
        raise ValueError(
            f"unknown model family {family!r}: expected 'deit', 'beit', 'perceiver', 'convnext' or 'intern'"
        )
    is_intern = family == "intern"
    fused = "fused_mlp" in (config.get("mlp_type"), config.get("Mlp_block"))
    return ViTBranch(
        **_common(config),
        qkv_bias=config.get("qkv_bias", True),
        pretrain_image_size=config.get("pretrain_img_size", 224),
        window_sizes=windows(config),
        pad_before_qkv=is_intern or config.get("use_flash_attn", True),
        drop_path_schedule="linear" if is_intern else "constant",
        layer_scale=config.get("init_values" if is_intern else "init_scale", 1.0),
        norm="rms_norm"
        if is_intern and config.get("norm_layer_type", "RMSNorm") == "RMSNorm"
        else "layer_norm",
        qk_norm=is_intern and config.get("qk_normalization", True),
        activation="gelu_tanh" if fused else "gelu",
        pos_embed_has_cls=is_intern,
    )


def _build_single(config: Mapping[str, Any]) -> PyramidBackbone:
    branch = build_branch(config, _SINGLE[config["type"]])
    size = config.get("real_size", 1024)
    if isinstance(branch, ConvNeXtBranch):
        stages = [branch.stage_blocks()]
        piip = PIIP(
            [branch], [size], num_interactions=0, stages=stages, merge="identity", tap_stages=(0, 1, 2)
        )
    else:
        piip = PIIP([branch], [size], num_interactions=0, merge="identity")
    return PyramidBackbone(piip, published_pyramid(piip, norm="layer"))


def build_backbone(config: Mapping[str, Any], *, replicate_branch4_bug: bool = False) -> PyramidBackbone:
    """Build a published backbone.

    Args:
        config: the published settings, ``type`` one of PIIPTwoBranch, PIIPThreeBranch, PIIPFourBranch,
            vit_models, InternViT6B and ConvNextHFWrapper.
        replicate_branch4_bug: build the fourth branch from the settings of the third, as the published code
            does; its image size remains its own. False builds what the configuration says.

    Returns:
        A module from ``(B, 3, H, W)`` to ``{"merged": ..., "f1": ..., "f2": ..., "f3": ..., "f4": ...}``,
        those that exist, with the state dict of :func:`piip.official.convert_backbone`.

    Raises:
        ValueError: for a type or a setting that is not known.
    """
    kind = config.get("type")
    if kind in _SINGLE:
        return _build_single(config)
    if kind not in _NUM_BRANCHES:
        raise ValueError(f"unknown backbone type {kind!r}: expected one of {[*_NUM_BRANCHES, *_SINGLE]}")
    count = _NUM_BRANCHES[kind]
    settings: list[Mapping[str, Any]] = [config[f"branch{j}"] for j in range(1, count + 1)]
    models = list(settings)
    if replicate_branch4_bug and count == 4:
        models[3] = settings[2]

    with_simple_fpn = config.get("with_simple_fpn", True)
    piip = PIIP(
        [build_branch(model) for model in models],
        [setting["real_size"] for setting in settings],
        stages=[stages(setting) for setting in settings],
        interaction=interaction(config),
        merge="conv" if with_simple_fpn else "single_conv",
        tap_stages=() if with_simple_fpn else config["out_interaction_indexes"],
    )
    is_dino = config.get("is_dino", False)
    pyramid = published_pyramid(
        piip,
        outputs=("f2", "f3", "f4") if is_dino else ("f1", "f2", "f3", "f4"),
        extra=("f1",) if is_dino and count == 3 else (),
    )
    return PyramidBackbone(piip, pyramid)
