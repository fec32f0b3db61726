"""What keeps the weights of a checkpoint from being a model's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

__all__ = ["differences"]


def _listing(title: str, entries: Sequence[str], shown: int | None) -> list[str]:
    if not entries:
        return []
    more = f", ... {len(entries) - shown} more" if shown is not None and len(entries) > shown else ""
    return [f"{len(entries)} {title}: {', '.join(entries[:shown])}{more}"]


def differences(
    weights: Mapping[str, Tensor], model: Mapping[str, Tensor], *, shown: int | None = None
) -> list[str]:
    """What keeps weights from being loaded into a model; empty where they fit.

    Args:
        weights: those of a checkpoint.
        model: the model's state dict.
        shown: how many keys of each kind to name; None for all.

    Returns:
        One text for the keys missing, one for those unknown, one for those of another shape.
    """
    misshapen = [
        f"{key} {tuple(weights[key].shape)} in the checkpoint, {tuple(model[key].shape)} here"
        for key in model
        if key in weights and weights[key].shape != model[key].shape
    ]
    return [
        *_listing("keys missing", [key for key in model if key not in weights], shown),
        *_listing("keys unknown", [key for key in weights if key not in model], shown),
        *_listing("shapes differ", misshapen, shown),
    ]
