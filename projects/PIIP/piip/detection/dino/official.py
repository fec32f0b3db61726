"""The published DINO configuration becomes a model of this package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .model import DINO
from .neck import ChannelMapper

__all__ = ["build_dino"]


def build_dino(model: Mapping[str, Any]) -> DINO:
    """Build what follows the backbone in a released DINO detector.

    Args:
        model: the published ``model`` dict, of which ``bbox_head``, ``test_cfg`` and, where there is one,
            ``neck`` are read.

    Returns:
        A module: ``module(features, image_sizes, padded_size)`` gives detections,
        ``module.losses(features, image_sizes, padded_size, boxes, labels, draws=None)`` the published losses;
        its state dict is that of :func:`piip.official.convert_dino`.

    Raises:
        ValueError: a setting that the released detectors do not have.
    """
    head = model["bbox_head"]
    transformer = head["transformer"]
    encoder, decoder = transformer["encoder"], transformer["decoder"]
    attention = encoder["transformerlayers"]["attn_cfgs"]
    attention = attention[0] if isinstance(attention, list | tuple) else attention
    ffn = encoder["transformerlayers"].get("ffn_cfgs", {})
    hidden_dim = ffn.get(
        "feedforward_channels", encoder["transformerlayers"].get("feedforward_channels", 2048)
    )
    denoising = head.get("dn_cfg", {}).get("group_cfg", {})
    if not denoising.get("dynamic", True):
        raise ValueError("denoising groups of a fixed number are not supported: expected dynamic=True")
    if not (head.get("as_two_stage", True) and head.get("with_box_refine", True)):
        raise ValueError("DINO is built with as_two_stage and with_box_refine only")
    dim, num_levels = attention["embed_dims"], transformer.get("num_feature_levels", attention["num_levels"])
    neck = None
    if settings := model.get("neck"):
        groups = (settings.get("norm_cfg") or {}).get("num_groups", 32)
        neck = ChannelMapper(settings["in_channels"], settings["out_channels"], settings["num_outs"], groups)
    return DINO(
        neck,
        num_classes=head["num_classes"],
        num_queries=head["num_query"],
        num_denoising=denoising.get("num_dn_queries", 100),
        dim=dim,
        hidden_dim=hidden_dim,
        num_heads=attention["num_heads"],
        num_levels=num_levels,
        num_points=attention["num_points"],
        encoder_layers=encoder["num_layers"],
        decoder_layers=decoder["num_layers"],
        max_detections=(model.get("test_cfg") or {}).get("max_per_img", 300),
        position_temperature=head.get("positional_encoding", {}).get("temperature", 20),
    )
