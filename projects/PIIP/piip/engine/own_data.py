"""One's own data in the place of a config's: what `--data` of the tools does, whatever the task."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

from detectron2.config import instantiate
from omegaconf import DictConfig, OmegaConf

from .checkpoint import ClassShapes, read_metadata

__all__ = ["OwnData", "follow_weights", "use_own_data", "without_overrides"]

_PLACE = "dataloader.own_data"


class OwnData(Protocol):
    """How a task takes other data; a config names its task's as `dataloader.own_data`."""

    def use(self, cfg: DictConfig, data: Sequence[str], *, train: bool) -> ClassShapes:
        """Make the config one for other data, in place.

        Args:
            cfg: a LazyConfig.
            data: what the command line says of the data.
            train: whether training data are needed, too.

        Returns:
            The parameters that follow the number of classes.
        """

    def follow(self, cfg: DictConfig, metadata: Mapping[str, Any]) -> None:
        """Give the config's model, in place, the classes that a checkpoint's metadata name."""


def without_overrides(values: Sequence[str]) -> tuple[list[str], list[str]]:
    """What a command line gives after `--data`, apart from the overrides (``a.b=c``, ``+a=c``) behind it."""
    is_override = [re.match(r"\+|\w+(\.\w+|\[\d+\])+=", value) is not None for value in values]
    pairs = list(zip(values, is_override, strict=True))
    return [v for v, override in pairs if not override], [v for v, override in pairs if override]


def _of(cfg: DictConfig) -> OwnData | None:
    own = OmegaConf.select(cfg, _PLACE)
    return None if own is None else cast(OwnData, instantiate(own))


def use_own_data(cfg: DictConfig, data: Sequence[str], *, train: bool) -> ClassShapes:
    """Make a config one for other data, in place, as its task does; see :class:`OwnData`.

    Args:
        cfg: a LazyConfig.
        data: what follows `--data`; empty to leave the config as it is.
        train: whether training data are needed, too.

    Raises:
        ValueError: the config does not say how, or the data are not what its task expects.
        FileNotFoundError: a file or folder is not there.
    """
    if not data:
        return {}
    own = _of(cfg)
    if own is None:
        raise ValueError(
            f"the config has no {_PLACE}, which would say how to train it on other data (--data): "
            "detectors have dataloader.own_data=L(piip.detection.own_data.CocoData)()"
        )
    return own.use(cfg, data, train=train)


def follow_weights(cfg: DictConfig, weights: str) -> None:
    """Give a config's model, in place, the classes that a checkpoint was trained on, if that names any."""
    own, metadata = _of(cfg), read_metadata(weights)
    if own is not None and metadata:
        own.follow(cfg, metadata)
