"""A custom dataset in the place of a config's: what `--data` of the tools does, whatever the task."""

from __future__ import annotations

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast

import torch
from detectron2.config import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from ..checkpoints.checkpoint import ClassShapes, read_metadata

__all__ = [
    "LOADERS",
    "CustomDataset",
    "Split",
    "class_shapes",
    "follow_weights",
    "pairs_of_paths",
    "set_num_classes",
    "splits",
    "use_custom_dataset",
    "without_overrides",
]

LOADERS = {"train": "train", "val": "test"}
"""Splits on the command line: their loaders in a config."""

_PLACE = "dataloader.own_data"

_logger = logging.getLogger("detectron2.piip")


class Split(Protocol):
    """The files of a split of a custom dataset; `str()` names them in messages."""

    @classmethod
    def parse(cls, text: str) -> Split:
        """The files that the command line names.

        Raises:
            FileNotFoundError: one is not there.
        """

    def classes(self) -> Sequence[str] | Mapping[int, str]:
        """Names of the classes, in their order or by their ids.

        Raises:
            ValueError, OSError: they cannot be read.
        """


class CustomDataset(ABC):
    """How a task takes other data; a config names its task's as `dataloader.own_data`.

    Attributes:
        split: reads what the command line says of a split.
        form: what it has to look like, for messages.
        places: sections of a model that hold its number of classes; "" for the model itself.
        names: key of a checkpoint's metadata under which the names of the classes are.
    """

    split: ClassVar[type[Split]]
    form: ClassVar[str]
    places: ClassVar[tuple[str, ...]]
    names: ClassVar[str]

    @abstractmethod
    def register(self, name: str, files: Any) -> None:
        """Make a split known to Detectron2 under a name."""

    @abstractmethod
    def adapt(self, cfg: DictConfig, files: Mapping[str, Any]) -> None:
        """Change what else of the config the splits call for, in place."""

    def use(self, cfg: DictConfig, data: Sequence[str], *, train: bool = True) -> ClassShapes:
        """Make the config one for other data, in place.

        Registers the splits as "own_train" and "own_val", names them in the data loaders and the evaluator,
        and replaces the number of classes wherever the model holds it.

        Args:
            cfg: a LazyConfig.
            data: "train=..." and "val=...", or one without a split for both.
            train: whether the training split is needed.

        Returns:
            The parameters that follow the number of classes.

        Raises:
            ValueError: a split is missing, given twice, or has other classes than the other one; or the
                model has no number of classes.
            FileNotFoundError: a file or folder is not there.
        """
        found = splits(data, self.split.parse, self.form, train=train)
        classes = found["val"].classes()
        for split, files in found.items():
            if files.classes() != classes:
                raise ValueError(f"{files} and {found['val']} have different classes: both need the same")
            self.register(f"own_{split}", files)
            cfg.dataloader[LOADERS[split]].dataset.names = f"own_{split}"
        if "dataset_name" in cfg.dataloader.get("evaluator", {}):
            cfg.dataloader.evaluator.dataset_name = "own_val"
        self.adapt(cfg, found)
        return class_shapes(cfg, len(classes), *self.places)

    def follow(self, cfg: DictConfig, metadata: Mapping[str, Any]) -> None:
        """Give the config's model, in place, the number of classes that a checkpoint's metadata name."""
        if classes := metadata.get(self.names):
            set_num_classes(cfg, len(classes), *self.places)


def pairs_of_paths(text: str) -> list[tuple[Path, Path]]:
    """All readings of ``ONE:OTHER``: names may hold colons themselves."""
    colons = [position for position, letter in enumerate(text) if letter == ":"]
    return [(Path(text[:i]).expanduser(), Path(text[i + 1 :]).expanduser()) for i in colons]


def without_overrides(values: Sequence[str]) -> tuple[list[str], list[str]]:
    """A command line apart from its overrides (``a.b=c``, ``+a=c``), which may stand anywhere."""
    is_override = [re.match(r"\+|\w+(\.\w+|\[\d+\])+=", value) is not None for value in values]
    pairs = list(zip(values, is_override, strict=True))
    return [v for v, override in pairs if not override], [v for v, override in pairs if override]


def _of(cfg: DictConfig) -> CustomDataset | None:
    own = OmegaConf.select(cfg, _PLACE)
    return None if own is None else cast(CustomDataset, instantiate(own))


def use_custom_dataset(cfg: DictConfig, data: Sequence[str], *, train: bool) -> ClassShapes:
    """Make a config one for other data, in place, as its task does; see :class:`CustomDataset`.

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


def splits(data: Sequence[str], parse: Callable[[str], Split], form: str, *, train: bool) -> dict[str, Split]:
    """What `--data` names, by split.

    Args:
        data: "train=..." and "val=...", or one without a split for both.
        parse: reads what follows the split.
        form: what that looks like, for errors.
        train: whether the training split is needed.

    Raises:
        ValueError: a split is missing, or given twice.
    """
    found: dict[str, Split] = {}
    for text in data:
        split, equals, rest = text.partition("=")
        named = bool(equals) and split in LOADERS
        parsed = parse(rest if named else text)
        for name in [split] if named else LOADERS:
            if name in found:
                raise ValueError(f"--data gives the {name} set twice: {' '.join(data)}")
            found[name] = parsed
    if missing := [split for split in LOADERS if split not in found and (train or split == "val")]:
        raise ValueError(f"--data has no {missing[0]} set: give {missing[0]}={form}, too")
    if train and found["train"] == found["val"]:
        _logger.warning(
            f"{found['val']} is used for training and for validation: the figures will say nothing of other "
            f"images (give train={form} val={form})"
        )
    return found


def set_num_classes(cfg: DictConfig, number: int, *places: str) -> None:
    """Replace a model's number of classes wherever it is held, in place.

    It is the `num_classes` of one of some sections of the model, and every other `num_classes` in the model
    that has the same value, such as that of a loss.

    Args:
        cfg: a LazyConfig.
        number: of classes.
        places: the sections, such as "roi_heads"; "" for the model itself.

    Raises:
        ValueError: the model has no number of classes.
    """
    for node in _class_counts(cfg.model, places):
        node.num_classes = number


def class_shapes(cfg: DictConfig, number: int, *places: str) -> ClassShapes:
    """:func:`set_num_classes`, and which parameters follow it: those whose shape one class more changes."""
    nodes, shapes = _class_counts(cfg.model, places), []
    for count in (number + 1, number):
        for node in nodes:
            node.num_classes = count
        with torch.device("meta"):
            state = instantiate(cfg.model).state_dict()
        shapes.append({key: tensor.shape for key, tensor in state.items()})
    more, these = shapes
    return {
        key: tuple(a if a == b else None for a, b in zip(shape, more[key], strict=True))
        for key, shape in these.items()
        if shape != more[key]
    }


def _class_counts(model: DictConfig, own_places: Sequence[str]) -> list[DictConfig]:
    """Sections of a model whose `num_classes` is the model's.

    Raises:
        ValueError: there are none.
    """
    places = list(_with_num_classes(model))
    own = [node for path, node in places if path in own_places]
    if not own:
        names = " or of ".join(f"its {place}" if place else "its own" for place in own_places)
        raise ValueError(f"the config's model has no num_classes (of {names}) to change")
    return [node for _, node in places if node.num_classes == own[0].num_classes]


def _with_num_classes(node: Any, path: str = "") -> Iterator[tuple[str, DictConfig]]:
    """Sections that hold a `num_classes` of their own, with their place in the model."""
    own = isinstance(node, DictConfig) and "num_classes" in node
    if own and not OmegaConf.is_interpolation(node, "num_classes"):
        yield path, node
    if isinstance(node, DictConfig | ListConfig):
        for key in range(len(node)) if isinstance(node, ListConfig) else node:
            if not OmegaConf.is_interpolation(node, key):
                yield from _with_num_classes(node[key], f"{path}.{key}".lstrip("."))
