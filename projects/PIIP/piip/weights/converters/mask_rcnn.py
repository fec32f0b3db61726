"""Released Mask R-CNN checkpoints: mmdetection's names and Detectron2's."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from ..differences import check_values
from .backbone import convert_backbone, to_official_backbone

__all__ = ["convert_detector", "is_official", "to_official_detector"]

_BACKBONE, _BOTTOM_UP = "backbone.", "backbone.bottom_up."
_LAYERS = {  # each has a weight and a bias
    **{f"neck.lateral_convs.{i}.conv": f"backbone.fpn_lateral{i + 2}" for i in range(4)},
    **{f"neck.fpn_convs.{i}.conv": f"backbone.fpn_output{i + 2}" for i in range(4)},
    "rpn_head.rpn_conv": "proposal_generator.rpn_head.conv",
    "rpn_head.rpn_cls": "proposal_generator.rpn_head.objectness_logits",
    "rpn_head.rpn_reg": "proposal_generator.rpn_head.anchor_deltas",
    **{f"roi_head.bbox_head.shared_fcs.{i}": f"roi_heads.box_head.fc{i + 1}" for i in range(2)},
    "roi_head.bbox_head.fc_cls": "roi_heads.box_predictor.cls_score",
    "roi_head.bbox_head.fc_reg": "roi_heads.box_predictor.bbox_pred",
    **{f"roi_head.mask_head.convs.{i}.conv": f"roi_heads.mask_head.mask_fcn{i + 1}" for i in range(4)},
    "roi_head.mask_head.upsample": "roi_heads.mask_head.deconv",
    "roi_head.mask_head.conv_logits": "roi_heads.mask_head.predictor",
}
_TO_OURS = {f"{a}.{leaf}": f"{b}.{leaf}" for a, b in _LAYERS.items() for leaf in ("weight", "bias")}
_TO_OFFICIAL = {ours: official for official, ours in _TO_OURS.items()}


def is_official(names: Collection[str]) -> bool:
    """Whether tensor names are those of a released detector rather than of a Detectron2 model."""
    return any(name.startswith(("neck.", "roi_head.", "rpn_head.", "bbox_head.")) for name in names)


def _split(state: Mapping[str, Tensor], prefix: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What is below ``prefix``, without it, and the rest."""
    inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return inside, {key: value for key, value in state.items() if not key.startswith(prefix)}


def convert_detector(state: Mapping[str, Tensor], origin: object = "the checkpoint") -> dict[str, Tensor]:
    """Rename a released Mask R-CNN's tensors to those of a Detectron2 model with the released neck.

    Args:
        state: published key -> tensor, of any floating-point type. Tensors are passed on, not copied.
        origin: what to call the source in errors.

    Returns:
        name in the model of a config with ``model.backbone.neck="released"`` -> tensor.

    Raises:
        ValueError: naming every key that is not known, every tensor of the backbone whose shape contradicts
            the others, or the first that holds something else than finite numbers.
    """
    backbone, rest = _split(state, _BACKBONE)
    if unknown := [key for key in rest if key not in _TO_OURS]:
        hint = " (a DINO detector?)" if any(key.startswith("bbox_head.") for key in unknown) else ""
        raise ValueError(
            f"{origin} is no released Mask R-CNN{hint}, {len(unknown)} keys are unknown: {', '.join(unknown)}"
        )
    try:
        converted = {_BOTTOM_UP + name: tensor for name, tensor in convert_backbone(backbone).items()}
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from error
    converted |= {_TO_OURS[key]: tensor for key, tensor in rest.items()}
    check_values(converted, origin)
    return converted


def to_official_detector(state: Mapping[str, Tensor], origin: object = "the checkpoint") -> dict[str, Tensor]:
    """Undo :func:`convert_detector`: from our names to the published ones, the tensors themselves untouched.

    Raises:
        ValueError: naming every tensor for which there is no published name.
    """
    backbone, rest = _split(state, _BOTTOM_UP)
    if unknown := [key for key in rest if key not in _TO_OFFICIAL]:
        raise ValueError(
            f"{origin} is no Mask R-CNN with the released neck, {len(unknown)} tensors have no published "
            f"name: "
            f"{', '.join(unknown)}"
        )
    try:
        official = {_BACKBONE + key: tensor for key, tensor in to_official_backbone(backbone).items()}
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from error
    return official | {_TO_OFFICIAL[key]: tensor for key, tensor in rest.items()}
