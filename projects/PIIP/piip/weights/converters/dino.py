"""Released DINO heads: the published names of tensors and ours."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .backbone import convert_backbone, to_official_backbone
from .renaming import invert, rename_all

__all__ = [
    "convert_dino",
    "convert_dino_detector",
    "is_official_dino",
    "to_official_dino",
    "to_official_dino_detector",
]

_BACKBONE, _OURS = "backbone.", "head."

_HEAD = "bbox_head."
_TRANSFORMER = f"{_HEAD}transformer."
_RULES = (  # published, ours; # is a number
    ("neck.convs.#.conv.", "neck.convs.#.conv."),
    ("neck.convs.#.gn.", "neck.convs.#.norm."),
    ("neck.extra_convs.#.conv.", "neck.extra_convs.#.conv."),
    ("neck.extra_convs.#.gn.", "neck.extra_convs.#.norm."),
    (f"{_TRANSFORMER}level_embeds", "level_embeds"),
    (f"{_TRANSFORMER}enc_output.", "enc_output."),
    (f"{_TRANSFORMER}enc_output_norm.", "enc_output_norm."),
    (f"{_TRANSFORMER}query_embed.", "query_embed."),
    (f"{_TRANSFORMER}encoder.layers.#.attentions.0.", "encoder.layers.#.attention."),
    (f"{_TRANSFORMER}encoder.layers.#.ffns.0.layers.0.0.", "encoder.layers.#.ffn.0."),
    (f"{_TRANSFORMER}encoder.layers.#.ffns.0.layers.1.", "encoder.layers.#.ffn.2."),
    (f"{_TRANSFORMER}encoder.layers.#.norms.#.", "encoder.layers.#.norms.#."),
    (f"{_TRANSFORMER}decoder.layers.#.attentions.0.attn.", "decoder.layers.#.self_attention."),
    (f"{_TRANSFORMER}decoder.layers.#.attentions.1.", "decoder.layers.#.cross_attention."),
    (f"{_TRANSFORMER}decoder.layers.#.ffns.0.layers.0.0.", "decoder.layers.#.ffn.0."),
    (f"{_TRANSFORMER}decoder.layers.#.ffns.0.layers.1.", "decoder.layers.#.ffn.2."),
    (f"{_TRANSFORMER}decoder.layers.#.norms.#.", "decoder.layers.#.norms.#."),
    (f"{_TRANSFORMER}decoder.ref_point_head.#.", "decoder.position.#."),
    (f"{_TRANSFORMER}decoder.norm.", "decoder.norm."),
    (f"{_HEAD}cls_branches.#.", "class_branches.#."),
    (f"{_HEAD}reg_branches.#.#.", "box_branches.#.#."),
    (f"{_HEAD}label_embedding.", "label_embedding."),
)


def is_official_dino(state: Mapping[str, object]) -> bool:
    """Whether names are those of a published DINO."""
    return any(str(key).startswith(_TRANSFORMER) for key in state)


def convert_dino(state: Mapping[str, Tensor], origin: object = "the checkpoint") -> dict[str, Tensor]:
    """Rename the tensors of a published DINO's neck and head to those of :func:`piip.official.build_dino`.

    Args:
        state: published key, beginning with ``neck.`` or ``bbox_head.`` -> tensor, passed on, not copied.
        origin: what to call the source in errors.

    Raises:
        ValueError: naming every key that is not known, or the first tensor that is not finite.
    """
    return rename_all(state, _RULES, f"{origin} is no DINO head of the release", origin)


def to_official_dino(state: Mapping[str, Tensor], origin: object = "the checkpoint") -> dict[str, Tensor]:
    """Undo :func:`convert_dino`.

    Raises:
        ValueError: naming every tensor for which there is no published name.
    """
    return rename_all(state, invert(_RULES), f"{origin} has no published form", origin)


def _split(state: Mapping[str, Tensor], prefix: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What is below ``prefix``, without it, and the rest."""
    inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return inside, {key: value for key, value in state.items() if not key.startswith(prefix)}


def convert_dino_detector(
    state: Mapping[str, Tensor], origin: object = "the checkpoint"
) -> dict[str, Tensor]:
    """Rename all tensors of a released DINO detector to those of a `DINODetector`.

    Raises:
        ValueError: naming every key that is not known, or the first tensor that is not finite.
    """
    backbone, head = _split(state, _BACKBONE)
    try:
        converted = {_BACKBONE + name: tensor for name, tensor in convert_backbone(backbone).items()}
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from error
    return converted | {_OURS + name: tensor for name, tensor in convert_dino(head, origin).items()}


def to_official_dino_detector(
    state: Mapping[str, Tensor], origin: object = "the checkpoint"
) -> dict[str, Tensor]:
    """Undo :func:`convert_dino_detector`.

    Raises:
        ValueError: naming every tensor for which there is no published name.
    """
    backbone, rest = _split(state, _BACKBONE)
    head, unknown = _split(rest, _OURS)
    if unknown:
        raise ValueError(f"{origin} is no DINO, {len(unknown)} keys are unknown: {', '.join(unknown)}")
    try:
        official = {_BACKBONE + name: tensor for name, tensor in to_official_backbone(backbone).items()}
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from error
    return official | to_official_dino(head, origin)
