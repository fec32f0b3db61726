"""LazyConfigs from the command line: a file, what weights say, and changes that must name what is there."""

from __future__ import annotations

import difflib
import inspect
import logging
from collections.abc import Collection, Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import detectron2.config
from detectron2.config import LazyConfig
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.registry import locate
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ..weights.files.atomic import atomic
from .checkpoints.checkpoint import CONFIG, read_about
from .command_line import is_for_users
from .saved_config import config_differences, dump, log_differences, parse, targets
from .settings import complete

__all__ = ["apply_overrides", "config_of", "instantiate", "load_config", "locate", "save_config"]

_logger = logging.getLogger("detectron2.piip")

_SUGGESTIONS = 3

# What trained weights depend on, beside the model: how images reach it. The last ones are a classifier's.
_IMAGES = (
    *("dataloader.test.mapper.augmentations", "dataloader.test.mapper.image_format"),
    *(
        f"dataloader.test.{key}"
        for key in ("input_size", "crop_pct", "crop_mode", "interpolation", "mean", "std")
    ),
)
# What is the model's, and changes nothing of what trained weights answer, or is said elsewhere.
_OF_TRAINING = frozenset({"pretrained", "drop_path_rate", "grad_checkpointing", "weight_init", "num_classes"})


def instantiate(section: Any, name: str = "") -> Any:
    """Build what a section of a config describes, as Detectron2's `instantiate` does.

    Args:
        section: a DictConfig with `_target_`, or a list of them; anything else is returned as it is.
        name: of the section, for errors; "" lets them through.

    Raises:
        ValueError: a value does not fit what it is given to.
    """
    try:
        return detectron2.config.instantiate(section)
    except (AssertionError, TypeError, ValueError) as error:
        if not name or is_for_users(error):
            raise
        raise ValueError(
            f"`{name}` of the config cannot be built, {type(error).__name__}: {error} (--traceback: where)"
        ) from error


def save_config(config: DictConfig, folder: str) -> str:
    """Write a config into config.yaml of an output folder, in the main process.

    Returns:
        Its text, for checkpoints to keep; "" where it could not be read again, which the log says.
    """
    try:
        text = dump(config)
        parse(text, trusted=targets(config))
    except (AttributeError, TypeError, ValueError, YAMLError) as error:
        _logger.warning(f"checkpoints will not keep the config, which cannot be written as yaml: {error}")
        text = ""
    if comm.is_main_process():
        path = Path(folder, "config.yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        if text:
            with atomic(path) as file:
                file.write(text.encode())
        else:
            LazyConfig.save(config, str(path))  # what can be written of it
    return text


class UnusableConfigError(ValueError):
    """The config in a checkpoint cannot be used; one that is given by its file can."""


def load_config(path: str | None, overrides: Sequence[str] = (), *, weights: str | None = None) -> DictConfig:
    """Run a LazyConfig file, write out what it leaves to defaults in `train`, and change it.

    Args:
        path: a ``.py`` file, which is a program and runs, or a ``.yaml`` that a run saved, which does not;
            None for the config that the weights were trained with.
        overrides: see :func:`apply_overrides`.
        weights: trained weights that the config is for, "" for its `train.init_checkpoint`. Where they know
            the config they were trained with, its model and its resizing of images take the place of this
            one's, and the log says where they differ.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be run, defines no config, or an override does not fit; or it is the
            config of another model than the weights'.
    """
    config = _read(path) if path else config_of(weights or "")
    if config is None:
        raise ValueError(f"{weights or 'no weights'} does not say what config it is of: give --config-file")
    if path and weights is not None:
        changed = apply_overrides(complete(deepcopy(config)), overrides)  # a slip in one is said first
        found = weights or changed.train.init_checkpoint
        try:
            saved = config_of(found, trusted=targets(config))
        except UnusableConfigError as error:
            _logger.warning(f"{error}: {path} is used as it is")
        else:
            if saved is not None:
                _follow(config, saved, path, found)
    return apply_overrides(complete(config), overrides)


def config_of(checkpoint: str, *, trusted: Collection[str] = ()) -> DictConfig | None:
    """The config that a checkpoint was trained with; None where it does not say.

    Args:
        checkpoint: a file; one of another project, an address or a folder says nothing.
        trusted: see :func:`piip.engine.saved_config.parse`.

    Raises:
        FileNotFoundError: there is no such file.
        UnusableConfigError: its config calls what only a config of one's own may.
        ValueError: it cannot be read.
    """
    text = read_about(checkpoint).get(CONFIG) if checkpoint else None
    if text is None:
        return None
    try:
        return parse(text, trusted=trusted)
    except ValueError as error:
        raise UnusableConfigError(f"the config in {checkpoint} cannot be used, {error}") from error


def _related(name: str, other: str) -> bool:
    """Whether one class is the other or derives from it, as R-CNNs by other training rules do."""
    if name == other:
        return True
    first, second = locate(name), locate(other)
    classes = isinstance(first, type) and isinstance(second, type)
    return classes and (issubclass(first, second) or issubclass(second, first))


def _follow(config: DictConfig, saved: DictConfig, path: str, weights: str) -> None:
    """Give a config, in place, the model and the images of the one that weights were trained with."""
    given, kept = parse(dump(config), trusted=targets(config)), saved
    if not _related(given.model.get("_target_"), kept.model.get("_target_")):
        raise ValueError(
            f"{weights} holds a {kept.model.get('_target_')}, {path} describes a "
            f"{given.model.get('_target_')}: give the config it was trained with, or none"
        )
    found = list(config_differences(given.model, kept.model, "model"))
    config.model = kept.model
    for key in _IMAGES:
        of_given, of_kept = OmegaConf.select(given, key), OmegaConf.select(kept, key)
        if of_given is not None and of_kept is not None:
            found += config_differences(of_given, of_kept, key)
            OmegaConf.update(config, key, of_kept, merge=False)
    log_differences(
        "{key} is {given} in " + path + " and {kept} in " + weights + ", which is used: {key}=... changes it",
        [difference for difference in found if difference.key.rpartition(".")[2] not in _OF_TRAINING],
    )


def _read(path: str) -> DictConfig:
    if "://" not in path and not Path(path).is_file():
        raise FileNotFoundError(f"config {path} does not exist: check the path")
    try:
        if path.endswith((".yaml", ".yml")):
            with PathManager.open(path) as file:
                return parse(file.read())
        config = LazyConfig.load(path)
    except Exception as error:  # a config is a program: anything can go wrong in it
        raise ValueError(f"config {path} cannot be used, {type(error).__name__}: {error}") from error
    assert isinstance(config, DictConfig)
    return config


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
