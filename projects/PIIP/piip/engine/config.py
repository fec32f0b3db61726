"""LazyConfigs from the command line: a file, and changes that must name what is there."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path

from detectron2.config import LazyConfig, instantiate
from detectron2.utils.registry import locate
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .settings import complete

__all__ = ["apply_overrides", "instantiate", "load_config", "locate"]

_SUGGESTIONS = 3


def load_config(path: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Run a LazyConfig file, write out what it leaves to defaults in `train`, and change it.

    Args:
        path: a ``.py`` or ``.yaml`` file.
        overrides: see :func:`apply_overrides`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be run, defines no config, or an override does not fit.
    """
    if "://" not in path and not Path(path).is_file():
        raise FileNotFoundError(f"config {path} does not exist: check the path")
    try:
        config = LazyConfig.load(path)
    except Exception as error:  # a config is a program: anything can go wrong in it
        raise ValueError(f"config {path} cannot be used, {type(error).__name__}: {error}") from error
    if not isinstance(config, DictConfig):
        raise ValueError(f"config {path} holds a {type(config).__name__}: expected sections such as `model`")
    return apply_overrides(complete(config), overrides)


def apply_overrides(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Change fields of a config in place.

    Args:
        config: a LazyConfig.
        overrides: ``key=value`` in Hydra's grammar, for keys that the config has, or that the function it
            calls there takes; ``+key=value`` for any other.

    Raises:
        ValueError: an override cannot be read, or names a key that is not there; the nearest are named.
    """
    for override in overrides:
        try:
            parsed = OverridesParser.create().parse_override(override)
            if parsed.is_delete():
                raise ValueError(
                    f"override '{override}' deletes a key, which is not supported: set it to null"
                )
            if not parsed.is_add():
                _check_key(config, parsed.key_or_group)
            LazyConfig.apply_overrides(config, [override])
        except (OmegaConfBaseException, HydraException, KeyError) as error:
            reason = str(error.args[0] if error.args else error).splitlines()[0]
            raise ValueError(
                f"override '{override}' cannot be applied ({reason}): expected key=value"
            ) from error
    return config


def _check_key(config: DictConfig, key: str) -> None:
    node: DictConfig | ListConfig = config
    names = key.replace("[", ".").replace("]", "").split(".")
    for position, name in enumerate(names):
        if isinstance(node, ListConfig):
            if not (name.isdecimal() and int(name) < len(node)):
                raise ValueError(f"{key}: '{name}' is not a place in a list of {len(node)}")
            child = node[int(name)]
        else:
            if name not in node:
                if position == len(names) - 1 and name in _parameters(node):
                    return
                raise ValueError(f"the config has no key '{key}'{_nearest(config, key)}; +{key}=... adds one")
            # interpolations are not followed: what they point to need not exist yet
            child = node._get_node(name) if OmegaConf.is_interpolation(node, name) else node[name]
        if position == len(names) - 1:
            return
        if child is None:
            return  # a field that is empty so far may become a section
        if not OmegaConf.is_config(child):
            path = ".".join(names[: position + 1])
            raise ValueError(f"the config has no key '{key}': {path} is a value, {child!r}, not a section")
        node = child


def _parameters(node: DictConfig) -> set[str]:
    """Names that the function or class of a LazyCall takes."""
    target = node.get("_target_")
    if target is None:
        return set()
    return set(inspect.signature(locate(target) if isinstance(target, str) else target).parameters)


def _keys(node: DictConfig | ListConfig, prefix: str = "") -> Iterator[str]:
    children = range(len(node)) if isinstance(node, ListConfig) else node
    for child in children:
        path = f"{prefix}{child}"
        yield path
        if not OmegaConf.is_interpolation(node, child) and OmegaConf.is_config(node[child]):
            yield from _keys(node[child], f"{path}.")


def _nearest(config: DictConfig, key: str) -> str:
    """The keys that a misspelt one resembles most; of several equal ones those in the same section first."""
    near = difflib.get_close_matches(key, list(_keys(config)), n=_SUGGESTIONS, cutoff=0.75)
    return f": did you mean {' or '.join(near)}?" if near else ""
