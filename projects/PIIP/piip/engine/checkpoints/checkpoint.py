"""Checkpoints that load whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ...weights.converters import released_format
from ...weights.differences import check_values, differences
from ...weights.files.atomic import atomic
from ...weights.files.download import is_remote, is_url, local_path
from ...weights.files.state_dict import state_dict_of
from ...weights.files.tensors import read_file, read_header, reading, write_file

METADATA = "metadata"
"""Key of a checkpoint under which the names of its classes are."""

CLASS_NAMES = ("thing_classes", "stuff_classes", "classes")
"""Keys of the metadata under which a task's classes are."""

CONFIG = "config"
"""Key of a checkpoint under which the config is that it was trained with, as text."""

ClassShapes = Mapping[str, tuple[int | None, ...]]
"""Shapes of the parameters that follow the number of classes, by name; None in the places where they do."""

_SHOWN = 5  # keys named in an error, per kind of mismatch
_IDS = "thing_dataset_id_to_contiguous_id"  # likewise
_HEADER = "piip"  # key of METADATA and CONFIG in the header of a .safetensors, which holds text only


def read_about(path: str) -> dict[str, Any]:
    """What a checkpoint of ours says of itself: METADATA and CONFIG, where it has them.

    Args:
        path: a file; nothing is known of addresses and folders.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read.
    """
    if is_remote(path) or os.path.isdir(path):
        return {}
    file = local_path(path)
    if not path.endswith(".pth"):
        return _from_header(file)
    content = read_file(file, mmap=True)
    return _about_of(content) if isinstance(content, dict) else {}


def _about_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """What is under METADATA and CONFIG, but where another program keeps something else there."""
    kept, config = content.get(METADATA), content.get(CONFIG)
    names = [kept.get(key, []) for key in CLASS_NAMES] if isinstance(kept, dict) else [None]
    about = {METADATA: kept} if kept and all(isinstance(listed, list | tuple) for listed in names) else {}
    return {**about, CONFIG: config} if isinstance(config, str) else about


def header(about: Mapping[str, Any]) -> dict[str, str]:
    """What :func:`read_about` returns, for the header of a .safetensors."""
    return {_HEADER: json.dumps(_about_of(about))}


def _from_header(file: Path) -> dict[str, Any]:
    with reading(file):
        content = json.loads(read_header(file).get(_HEADER, "{}"))
        about = _about_of(content if isinstance(content, dict) else {})
        if ids := about.get(METADATA, {}).get(_IDS):  # JSON's keys are text
            about[METADATA][_IDS] = {int(key): value for key, value in ids.items()}
    return about


def read_metadata(path: str) -> dict[str, Any]:
    """What a checkpoint of ours says of its classes, see :func:`read_about`; empty for others."""
    metadata: dict[str, Any] = read_about(path).get(METADATA, {})
    return metadata


def check_same_classes(kept: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of other classes than the data's, where both are known.

    Args:
        kept: a checkpoint's metadata.
        wanted: the same of the data.

    Raises:
        ValueError: naming both.
    """
    for key in CLASS_NAMES:
        if _differ(kept, wanted, key):
            raise ValueError(
                f"the checkpoint was trained on {describe(kept[key])}, the data have "
                f"{describe(wanted[key])}: give the data it was trained for (--data), or train it on these"
            )


def _differ(kept: Mapping[str, Any], wanted: Mapping[str, Any], key: str) -> bool:
    return bool(kept.get(key) and wanted.get(key)) and list(kept[key]) != list(wanted[key])


def describe(names: Sequence[str]) -> str:
    """Classes for a message: how many, and the first few names."""
    more = ", ..." if len(names) > _SHOWN else ""
    return f"{len(names)} classes ({', '.join(names[:_SHOWN])}{more})"


class Checkpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, strict: a checkpoint that does not fit the model is an error.

    Reads `.pth` (tensors and plain containers only) and `.safetensors`, released detectors included: their
    tensors are renamed on the way. Weights for a single branch go through `piip.weights.pretrained`.

    Attributes:
        metadata: names and ids of the classes, written into every checkpoint; empty to write none.
        config: that of the training, as text, likewise.
        restartable: parameters that stay as the model has them where a checkpoint knows other classes, or
            holds them for another number of classes.
        saved: name of the last checkpoint that this object wrote.
        mmap: whether files are mapped into memory rather than read.
    """

    saved = ""
    mmap = False

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        metadata: Mapping[str, Any] | None = None,
        config: str = "",
        restartable: ClassShapes | None = None,
        **checkpointables: Any,
    ) -> None:
        super().__init__(model, save_dir, **checkpointables)
        self.metadata, self.restartable = dict(metadata or {}), dict(restartable or {})
        self.config = config

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load the model, and what else was saved with it.

        Args:
            path: a file or anything iopath resolves; empty to load nothing.
            checkpointables: names of the other objects to load; None for all.

        Returns:
            What the checkpoint holds beyond those.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is no checkpoint, one of another architecture (names keys and shapes), or
                holds values that are not finite (names the tensor).
        """
        if path and os.path.isdir(path):
            raise ValueError(
                f"checkpoint {path} is a folder, of a sharded training: make a file of it with "
                "tools/gather_checkpoint.py"
            )
        if not path:
            self.logger.info("No checkpoint: the model starts as it is")
            return {}
        self.logger.info(f"Loading {path} ...")
        if is_remote(path) and not is_url(path):
            path = self.path_manager.get_local_path(path)
        file = str(local_path(path))
        checkpoint = self._load_file(file)
        self._load_weights(checkpoint, file)
        for key in self.checkpointables if checkpointables is None else checkpointables:
            if key in checkpoint:
                self.checkpointables[key].load_state_dict(checkpoint.pop(key))
        return checkpoint

    def save(self, name: str, **kwargs: Any) -> None:
        """Write `name`.pth, whole or not at all; only then is it the last checkpoint.

        Args:
            name: without suffix.
            kwargs: what else to keep, plain containers of tensors, numbers and strings.

        Raises:
            FloatingPointError: a parameter is infinite or NaN.
            OSError: the disk takes no more.
        """
        self.check_weights(name, together=False)
        if not self.save_dir or not self.save_to_disk:
            return
        target = Path(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {target}")
        content = {"model": self.model.state_dict()}
        content |= {key: part.state_dict() for key, part in self.checkpointables.items()}
        write_file(content | self.about() | kwargs, target)
        self.tag_last_checkpoint(target.name)
        self.saved = name

    def check_weights(self, name: str, *, together: bool = True) -> None:
        """Raise where a parameter is infinite or NaN here or, `together` (all must call it), in any process.

        Args:
            name: of the checkpoint that is due.

        Raises:
            FloatingPointError: naming the parameter and the last good checkpoint.
        """
        parts = {
            key: parameter.to_local() if isinstance(parameter, DTensor) else parameter
            for key, parameter in self.model.named_parameters()
        }
        bad = [key for key, part in parts.items() if not part.isfinite().all()]
        for key in (key for keys in (comm.all_gather(bad) if together else [bad]) for key in keys):
            raise FloatingPointError(
                f"checkpoint {name} not written: parameter {key} is infinite or NaN; "
                f"the last good checkpoint is {self.get_checkpoint_file() or 'none'}"
            )

    def about(self) -> dict[str, Any]:
        """What checkpoints say of themselves, see :func:`read_about`."""
        about = {METADATA: self.metadata, CONFIG: self.config}
        return {key: value for key, value in about.items() if value}

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Name the file that a resumed run continues from."""
        with atomic(Path(self.save_dir, "last_checkpoint")) as file:
            file.write(last_filename_basename.encode())

    def _load_file(self, filename: str) -> dict[str, Any]:
        """What a file holds, the weights under "model" by our names."""
        if filename.endswith(".pkl"):
            raise ValueError(
                f"checkpoint {filename} is a pickle, which can run code: convert it to .safetensors"
            )
        content = read_file(filename, mmap=self.mmap)
        state = state_dict_of(content, filename)
        released = released_format(state)
        if released is not None:
            self.logger.info(f"{filename} is a released {released.name}: converting the names of its tensors")
            return {"model": released.convert(state, filename)}
        rest = content if isinstance(content.get("model"), Mapping) else {}
        return {**_from_header(Path(filename)), **rest, "model": state}

    def _load_weights(self, checkpoint: dict[str, Any], origin: str) -> None:
        model, weights = self.model.state_dict(), checkpoint["model"]
        kept = _about_of(checkpoint).get(METADATA, {})
        other_classes = any(_differ(kept, self.metadata, key) for key in CLASS_NAMES)
        if anew := sorted(
            key
            for key, shape in self.restartable.items()
            if key in weights
            and (other_classes or weights[key].shape != model[key].shape)
            and _fits(weights[key].shape, shape)
        ):
            self.logger.warning(
                f"{len(anew)} tensors follow the classes and start anew: {', '.join(anew)}; all others "
                "are the checkpoint's"
            )
            weights = checkpoint["model"] = {**weights, **{key: model[key] for key in anew}}
        mismatches = differences(weights, model, shown=_SHOWN)
        if mismatches:
            if other_classes and not self.restartable:
                check_same_classes(kept, self.metadata)
            known = [f"it knows {describe(kept[key])}" for key in CLASS_NAMES if kept.get(key)]
            raise ValueError(
                f"checkpoint does not fit the model ({'; '.join([*mismatches, *known])}): give its own config"
            )
        self._copy_weights(checkpoint.pop("model"), origin)

    def _copy_weights(self, weights: Mapping[str, Tensor], origin: str) -> None:
        """Give the model the weights, whose names and shapes are right."""
        check_values(weights, f"checkpoint {origin}", self.model.state_dict())
        self.model.load_state_dict(weights)


def _fits(shape: Sequence[int], pattern: Sequence[int | None]) -> bool:
    """Whether a shape differs from another at most where that follows the number of classes."""
    return len(shape) == len(pattern) and all(
        p is None or p == s for s, p in zip(shape, pattern, strict=True)
    )
