"""Configs as text: what a run writes down of its config, and how that is read without running what it names.

The text is that of Detectron2's `LazyConfig.save`: yaml, in which `_target_` names what is called. Detectron2
reads it with a loader that runs code. Here tags stand for tuples and a few plain objects only, and `_target_`
names classes of the libraries that models are made of, and some functions: checkpoints come from anywhere.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import yaml
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import _convert_target_to_string, locate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

__all__ = ["Difference", "config_differences", "dump", "log_differences", "parse", "targets"]

_logger = logging.getLogger("detectron2.piip")

_SHOWN = 8  # differences, in the log

_LIBRARIES = ("detectron2.", "fvcore.", "piip.", "timm.", "torch.")  # whose modules are imported for a name
_CLASSES = (  # where the classes are that it may stand for: none of them writes a file when it is made
    *("torch.nn.", "torch.optim.", "fvcore.common.param_scheduler.", "timm.utils.model_ema."),
    *(f"detectron2.{part}." for part in ("data", "evaluation", "layers", "modeling", "projects", "solver")),
    *(f"piip.{part}." for part in ("backbone", "branches", "interaction", "merge", "neck")),
    *(f"piip.{part}." for part in ("classification", "detection", "segmentation")),
    *(f"piip.engine.{part}." for part in ("backbone", "data", "resize")),
    *(f"timm.{part}." for part in ("data", "layers", "loss", "models")),
)
_FUNCTIONS = frozenset(
    {
        "detectron2.solver.build.get_default_optimizer_params",
        "piip.detection.data.dataset_dicts",
        "piip.engine.backbone.piip_backbone",
        "piip.engine.backbone.released_maps",
        "piip.engine.data.loader.evaluation_loader",
        "piip.engine.optim.param_groups",
        "piip.segmentation.data.semantic_dicts",
        "timm.data.dataset_factory.create_dataset",
        "timm.data.loader.create_loader",
        "timm.optim._optim_factory.create_optimizer_v2",
        "timm.scheduler.scheduler_factory.create_scheduler_v2",
    }
)
_TAGS = "tag:yaml.org,2002:python/"


def dump(config: DictConfig) -> str:
    """A config as text; interpolations stay, callables become their names."""
    config = deepcopy(config)
    for node in _calls(config):
        if callable(node["_target_"]):
            node["_target_"] = _convert_target_to_string(node["_target_"])
    text: str = yaml.dump(
        OmegaConf.to_container(config), default_flow_style=None, allow_unicode=True, width=9999
    )
    return text


def parse(text: str, *, trusted: Collection[str] = ()) -> DictConfig:
    """The config of a text.

    Args:
        text: that :func:`dump` or Detectron2's `LazyConfig.save` wrote.
        trusted: names that `_target_` may hold beyond those that any text may, see :func:`targets`.

    Raises:
        ValueError: it is no yaml of sections, or could run code.
    """
    try:
        content = yaml.load(text, _Loader)
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, expected sections such as `model`")
        config = OmegaConf.create(content, flags={"allow_objects": True})
    except (yaml.YAMLError, OmegaConfBaseException, RecursionError, TypeError, LookupError) as error:
        raise ValueError(f"it is no config as yaml, {' '.join(str(error).split())}") from error
    for name in targets(config):
        if name not in trusted:
            _called(name)
    for node in _nodes(config):
        if node.get("trust_remote_code"):
            raise ValueError("it sets trust_remote_code, which runs code that is not here")
    return config


def targets(config: DictConfig) -> set[str]:
    """Names of all that a config calls."""
    found = (node._get_node("_target_") for node in _calls(config))
    values = (node._value() for node in found if node is not None)
    return {value if isinstance(value, str) else _convert_target_to_string(value) for value in values}


def _nodes(node: Any) -> Iterator[DictConfig]:
    """All sections, at any depth; interpolations are not followed."""
    if isinstance(node, DictConfig):
        yield node
    if isinstance(node, DictConfig | ListConfig) and not node._is_none():
        for key in range(len(node)) if isinstance(node, ListConfig) else list(node):
            if not OmegaConf.is_interpolation(node, key) and not OmegaConf.is_missing(node, key):
                yield from _nodes(node._get_node(key))


def _calls(config: DictConfig) -> Iterator[DictConfig]:
    return (node for node in _nodes(config) if "_target_" in node)


def _called(name: str) -> Callable[..., Any]:
    """What a name stands for.

    Raises:
        ValueError: it is not among what a text may name.
    """
    if not name.startswith(_LIBRARIES):
        raise ValueError(f"it calls {name}: expected a class of PIIP, Detectron2, timm or PyTorch")
    try:
        found = locate(name)
    except Exception as error:  # whatever goes wrong where a module is imported
        raise ValueError(f"it calls {name}, which is not there ({type(error).__name__})") from error
    full = f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}"
    if not (isinstance(found, type) and full.startswith(_CLASSES)) and full not in _FUNCTIONS:
        raise ValueError(f"it calls {name}, which only a .py config may")
    called: Callable[..., Any] = found
    return called


class Difference(NamedTuple):
    """A value that two configs have otherwise; None where one has none."""

    key: str
    given: Any
    kept: Any


def config_differences(given: Any, kept: Any, key: str = "") -> Iterator[Difference]:
    """The values that differ between two parsed configs, or between the same sections of them.

    Interpolations are compared as they stand, lists of values as a whole.
    """
    if isinstance(given, DictConfig) and isinstance(kept, DictConfig):
        for name in dict.fromkeys((*given, *kept)):
            yield from config_differences(_raw(given, name), _raw(kept, name), f"{key}.{name}".lstrip("."))
    elif _sections(given) and _sections(kept) and len(given) == len(kept):
        for place in range(len(given)):
            yield from config_differences(given[place], kept[place], f"{key}.{place}")
    elif given != kept:
        yield Difference(key, given, kept)


def _raw(node: DictConfig, name: Any) -> Any:
    child = node._get_node(name)
    return child if child is None or OmegaConf.is_config(child) else child._value()


def _sections(node: Any) -> bool:
    return isinstance(node, ListConfig) and any(OmegaConf.is_config(item) for item in node)


def log_differences(template: str, differences: Sequence[Difference]) -> None:
    """Log a line each, of which the template takes `key`, `given` and `kept`; of many the first ones."""
    for difference in differences[:_SHOWN]:
        _logger.warning(template.format_map(difference._asdict()))
    if len(differences) > _SHOWN:
        _logger.warning(f"... and {len(differences) - _SHOWN} more values")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with the tags that Python's tuples and Detectron2's plain objects have."""

    def construct_python(self, suffix: str, node: yaml.Node) -> Any:
        kind, _, name = suffix.partition(":")
        if kind == "tuple":
            return tuple(self.construct_sequence(node, deep=True))
        if kind == "name":
            return _called(name)
        if suffix == f"object:{ShapeSpec.__module__}.ShapeSpec":
            return ShapeSpec(**self.construct_mapping(node, deep=True))
        if suffix == "object/apply:functools.partial":
            function, args, keywords, _ = self.construct_mapping(node, deep=True)["state"]
            return functools.partial(function, *args, **keywords)
        raise yaml.constructor.ConstructorError(
            problem=f"tag !!python/{suffix} could run code: write such a config as a .py file"
        )


_Loader.add_multi_constructor(_TAGS, _Loader.construct_python)
