"""Published segmentation heads become models of this package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .heads import FCNHead, SegmentationHeads, UPerNetHead

__all__ = ["build_segmentation_heads"]


def build_segmentation_heads(model: Mapping[str, Any]) -> SegmentationHeads:
    """Build the two heads of a released segmentor.

    Args:
        model: the published ``decode_head`` (UPerHead) and ``auxiliary_head`` (FCNHead) dicts.

    Returns:
        A module from four maps to ``(logits, auxiliary_logits)``; ``.losses(maps, labels)`` gives both
        losses. Its state dict has the published names.

    Raises:
        ValueError: a setting that the released segmentors do not have.
    """
    main, auxiliary = model["decode_head"], model["auxiliary_head"]
    for head in (main, auxiliary):
        if head.get("align_corners", False):
            raise ValueError("align_corners=True is not supported: the released segmentors have False")
        if head.get("norm_cfg", {}).get("type", "SyncBN") not in ("BN", "SyncBN"):
            raise ValueError(f"norm {head['norm_cfg']['type']} is not supported: expected BN or SyncBN")
    if auxiliary.get("concat_input", False):
        raise ValueError("concat_input=True is not supported: the released segmentors have False")
    return SegmentationHeads(
        UPerNetHead(
            main["in_channels"],
            main["channels"],
            main["num_classes"],
            pool_scales=main.get("pool_scales", (1, 2, 3, 6)),
            dropout=main.get("dropout_ratio", 0.1),
        ),
        FCNHead(
            auxiliary["in_channels"],
            auxiliary["channels"],
            auxiliary["num_classes"],
            num_convs=auxiliary.get("num_convs", 1),
            dropout=auxiliary.get("dropout_ratio", 0.1),
        ),
        auxiliary_index=auxiliary.get("in_index", 2),
        weight=main.get("loss_decode", {}).get("loss_weight", 1.0),
        auxiliary_weight=auxiliary.get("loss_decode", {}).get("loss_weight", 0.4),
    )
