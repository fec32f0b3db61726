"""What images have to look like for a model, by timm's means."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import timm.data
from torch import nn

__all__ = ["create_transform", "resolve_data_config"]


def resolve_data_config(model: nn.Module | None = None, **changes: Any) -> dict[str, Any]:
    """Size, resizing and pixel statistics that a model of :func:`piip.create_model` was trained with.

    Args:
        model: with a `pretrained_cfg`.
        changes: other values, as in timm: ``input_size=(3, 512, 512)``, ``crop_mode="squash"``.

    Returns:
        Arguments of :func:`create_transform`.

    Raises:
        ValueError: the model says nothing about its images.
    """
    known = getattr(model, "pretrained_cfg", None)
    if model is not None and not isinstance(known, Mapping):
        raise ValueError(f"{type(model).__name__} has no pretrained_cfg: give a model of piip.create_model")
    config: dict[str, Any] = timm.data.resolve_data_config(changes, pretrained_cfg=dict(known or {}))
    return config


def create_transform(**config: Any) -> Callable[[Any], Any]:
    """timm's transform of a PIL image into ``(3, H, W)``, from :func:`resolve_data_config` and timm options.

    Images of a backbone are resized to fit and padded with the mean colour, a classifier's are cropped.
    """
    transform: Callable[[Any], Any] = timm.data.create_transform(**config)
    return transform
