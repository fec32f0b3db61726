"""Whether the weights of a checkpoint are a model's: names, shapes, types and values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["check_values", "differences"]


def _listing(title: str, entries: Sequence[str], shown: int | None) -> list[str]:
    if not entries:
        return []
    more = f", ... {len(entries) - shown} more" if shown is not None and len(entries) > shown else ""
    return [f"{len(entries)} {title}: {', '.join(entries[:shown])}{more}"]


def differences(
    weights: Mapping[str, Tensor], model: Mapping[str, Tensor], *, shown: int | None = None
) -> list[str]:
    """Why weights cannot be loaded into a model; empty if they can.

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


def _kind(dtype: torch.dtype) -> str:
    if dtype.is_floating_point:
        return "a floating-point"
    return "a complex" if dtype.is_complex else "a boolean" if dtype == torch.bool else "an integer"


def _expected(key: str, tensor: Tensor, model: Mapping[str, Tensor]) -> torch.dtype:
    if key in model:
        return model[key].dtype
    if key.endswith("num_batches_tracked"):
        return torch.int64
    return tensor.dtype if tensor.is_floating_point() else torch.float32


def check_values(
    state: Mapping[str, Tensor], origin: object, model: Mapping[str, Tensor] | None = None
) -> None:
    """Refuse weights that a model cannot hold: of another kind of number, or not finite once copied.

    The smallest and the largest value are converted to the model's type. Conversion keeps their order, so no
    tensor is copied. Check shapes first.

    Args:
        state: name -> tensor; tensors on the meta device have no values to check.
        origin: the file, for errors.
        model: the model's state dict, for the types. What is not in it must be of a floating-point type,
            counters of batch norms aside.

    Raises:
        ValueError: naming the file, the first such tensor and what is in it.
    """
    for key, tensor in state.items():
        wanted = _expected(key, tensor, model or {})
        if _kind(tensor.dtype) != _kind(wanted):
            raise ValueError(f"{origin}: {key} is of {tensor.dtype}, expected {_kind(wanted)} type")
        if not wanted.is_floating_point or tensor.is_meta or not tensor.numel():
            continue
        values = tensor.detach()
        for value in (values if values.element_size() > 1 else values.float()).aminmax():
            if not value.isfinite():
                raise ValueError(f"{origin}: {key} holds NaN or infinite values: it is not a trained model")
            if not value.to(wanted).double().isfinite():
                raise ValueError(f"{origin}: {key} holds {value.item():.3g}, which {wanted} does not reach")
