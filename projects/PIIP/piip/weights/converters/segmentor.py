"""Released segmentor checkpoints: their names and those of our segmentors."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..differences import check_values
from .backbone import convert_backbone, to_official_backbone

__all__ = ["convert_segmentor", "to_official_segmentor"]

_BACKBONE = "backbone."
_HEADS = ("decode_head.", "auxiliary_head.")  # ours have the same names, below "heads."
_OURS = tuple(f"heads.{head}" for head in _HEADS)


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _check_known(state: Mapping[str, Tensor], heads: tuple[str, ...], origin: object) -> None:
    if unknown := [key for key in state if not key.startswith((_BACKBONE, *heads))]:
        raise ValueError(f"{origin} is no segmentor, {len(unknown)} keys are unknown: {', '.join(unknown)}")


def convert_segmentor(state: Mapping[str, Tensor], origin: object = "the checkpoint") -> dict[str, Tensor]:
    """Rename a released UPerNet's tensors to those of a `Segmentor`.

    Args:
        state: published key -> tensor. Tensors are passed on, not copied.
        origin: what to call the source in errors.

    Raises:
        ValueError: naming every key that is not known, every tensor of the backbone whose shape contradicts
            the others, or the first that holds something else than finite numbers.
    """
    _check_known(state, _HEADS, origin)
    try:
        backbone = convert_backbone(_below(state, _BACKBONE))
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from error
    converted = {_BACKBONE + name: tensor for name, tensor in backbone.items()}
    converted |= {f"heads.{key}": value for key, value in state.items() if key.startswith(_HEADS)}
    check_values(converted, origin)
    return converted


def to_official_segmentor(
    state: Mapping[str, Tensor], origin: object = "the checkpoint"
) -> dict[str, Tensor]:
    """Undo :func:`convert_segmentor`, the tensors themselves untouched.

    Raises:
        ValueError: naming every tensor for which there is no published name.
    """
    _check_known(state, _OURS, origin)
    try:
        backbone = to_official_backbone(_below(state, _BACKBONE))
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from error
    official = {_BACKBONE + name: tensor for name, tensor in backbone.items()}
    return official | _below({key: value for key, value in state.items() if key.startswith(_OURS)}, "heads.")
