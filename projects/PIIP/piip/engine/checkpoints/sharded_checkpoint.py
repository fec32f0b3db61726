"""Checkpoints of sharded trainings: folders that all processes write at once, while training goes on.

They are `torch.distributed.checkpoint`'s. What belongs to a parameter is kept under its name, in parts that
any number of processes can read. A folder is whole once its `.metadata` is there, which is written last;
`last_checkpoint` names it only then. Reading one runs no code, whoever wrote it.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from detectron2.utils import comm
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.tensor import DTensor

from ...weights.differences import differences
from ...weights.files.atomic import PARTIAL
from ...weights.files.sharded import FolderReader, is_sharded_checkpoint, load_sharded
from ...weights.files.state_dict import state_dict_of
from ...weights.files.tensors import read_file, reading
from ..distributed.sharding import fill, scalar_names
from .checkpoint import CONFIG, METADATA, Checkpointer, read_about

__all__ = ["ShardedCheckpointer", "about", "is_sharded_checkpoint", "whole_state"]

_logger = logging.getLogger("detectron2.piip")
_PROGRESS, _SCALARS = "progress", "scalars"


def _hidden(folder: Path) -> Path:
    """Where what belongs into a folder is, while that is not whole; `remove_partial` clears it away."""
    return folder.with_name(f".{folder.name}{PARTIAL}")


class ShardedCheckpointer(Checkpointer):
    """Saves and resumes a training under FSDP; starts from files as :class:`Checkpointer` does.

    All processes must call its methods. Saving copies to main memory and returns; a thread writes aside, and
    what is whole takes its name.
    """

    mmap = True  # each process reads its part, and checks the values of that

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, max_to_keep: int | None = None, **options: Any
    ) -> None:
        """
        Args:
            model, save_dir, options: see :class:`Checkpointer`; "trainer" is among them.
            max_to_keep: numbered folders to keep, those of before a resumption included; None for all.

        Raises:
            ValueError: `max_to_keep` is below 1.
        """
        if max_to_keep is not None and max_to_keep < 1:
            raise ValueError(
                f"train.checkpointer.max_to_keep is {max_to_keep}: use at least 1, or None for all"
            )
        super().__init__(model, save_dir, **options)
        self.max_to_keep = max_to_keep
        self.pending: Future[Any] | None = None
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        # the thread's own: training goes on in the others
        self.group: Any = dist.new_group(backend="gloo")

    def save(self, name: str, **kwargs: Any) -> None:
        """Begin to write the folder `name`, after the one before is written.

        Raises:
            FloatingPointError: a parameter is infinite or NaN; nothing is written.
            OSError: the one before could not be written.
        """
        self.wait()
        folder = Path(self.save_dir) / name
        aside = _hidden(folder)
        if comm.is_main_process():
            shutil.rmtree(aside, ignore_errors=True)  # what a failure left
        self.check_weights(name)  # all processes meet there
        trainer = dict(self.checkpointables["trainer"].state_dict())
        del trainer["optimizer"]  # in terms of places; kept by name instead
        progress = {**kwargs, **self.about(), "trainer": trainer}
        state = {
            **self._tensors(),
            _PROGRESS: json.dumps(progress),
            _SCALARS: json.dumps(scalar_names(self.model)),
        }
        self.logger.info(f"Saving checkpoint to {folder}")
        pending = dcp.async_save(state, checkpoint_id=aside, process_group=self.group)
        assert isinstance(pending, Future)
        self.pending, self.saved = pending, name
        if comm.is_main_process():
            self.pending = self.thread.submit(self._finish, pending, aside, folder)

    def _tensors(self) -> dict[str, Any]:
        trainer = self.checkpointables["trainer"]
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "optimizer": get_optimizer_state_dict(self.model, trainer.optimizer),
        }
        if "ema" in self.checkpointables:
            state["ema"] = self.checkpointables["ema"].state_dict()
        return state

    def _finish(self, pending: Future[Any], aside: Path, folder: Path) -> None:
        """In the main process, once all have written: name the last checkpoint, remove the oldest."""
        pending.result()
        replaced = _hidden(folder.with_name(f"{folder.name}.replaced"))
        shutil.rmtree(replaced, ignore_errors=True)
        if folder.exists():
            folder.rename(replaced)
        aside.rename(folder)
        self.tag_last_checkpoint(folder.name)
        shutil.rmtree(replaced, ignore_errors=True)
        prefix, _, number = folder.name.rpartition("_")
        if self.max_to_keep and number.isdigit():
            # later ones are of another run, which began in the same output folder
            numbered = sorted(folder.parent.glob(f"{prefix}_" + "[0-9]" * 7))
            whole = [path for path in numbered if path <= folder and is_sharded_checkpoint(path)]
            for old in whole[: -self.max_to_keep]:
                shutil.rmtree(old, ignore_errors=True)

    def wait(self) -> None:
        """Return once what was saved is written; in the main process, once `last_checkpoint` names it.

        Raises:
            OSError: it could not be.
        """
        if self.pending is None:
            return
        pending, self.pending = self.pending, None
        try:
            pending.result()
        except (dcp.CheckpointException, OSError) as error:  # PyTorch's is no `Exception`
            reason = " ".join(str(error).split())[-300:]
            raise OSError(f"the last checkpoint in {self.save_dir} could not be written: {reason}") from error

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """As :meth:`Checkpointer.load`; folders bring back what they hold, files give weights only."""
        if not path or not Path(path).is_dir():
            if path and checkpointables is None:
                raise ValueError(
                    f"{path} was not written under train.parallel='fsdp': resume with train.parallel='ddp'"
                )
            return super().load(path, [])
        if not is_sharded_checkpoint(path):
            raise ValueError(f"{path} is no whole sharded checkpoint: it has no .metadata")
        everything = checkpointables is None
        if everything:
            for group in self.checkpointables["trainer"].optimizer.param_groups:
                group.setdefault("initial_lr", group["lr"])  # as the scheduler has had it; replaced below
        self.logger.info(f"Loading from {path} ...")
        reader = FolderReader(path)
        state = self._tensors() if everything else {"model": self.model.state_dict()}
        known = reader.read_metadata().state_dict_metadata
        weights = {
            key.removeprefix("model."): torch.empty(entry.size, device="meta")
            for key, entry in known.items()
            if key.startswith("model.") and isinstance(entry, TensorStorageMetadata)
        }
        if problems := differences(weights, state["model"], shown=5):
            raise ValueError(f"checkpoint {path} does not fit the model ({'; '.join(problems)})")
        if not any(key.startswith("ema.") for key in known):
            state.pop("ema", None)
        state[_PROGRESS] = ""
        load_sharded(state, reader)
        self.model.load_state_dict(state["model"])
        with reading(path):
            progress: dict[str, Any] = json.loads(state[_PROGRESS])
        if everything:
            trainer = self.checkpointables["trainer"]
            set_optimizer_state_dict(self.model, trainer.optimizer, state["optimizer"])
            optimizer = trainer.optimizer.state_dict()
            trainer.load_state_dict({**progress.pop("trainer"), "optimizer": optimizer})
            if "ema" in state:
                self.checkpointables["ema"].load_state_dict(state["ema"])
        return progress

    def _load_weights(self, checkpoint: dict[str, Any], origin: str) -> None:
        weights = checkpoint["model"]
        longer = {name: weights[name].reshape(1) for name in scalar_names(self.model) if name in weights}
        super()._load_weights({**checkpoint, "model": {**weights, **longer}}, origin)

    def _copy_weights(self, weights: Mapping[str, Tensor], origin: str) -> None:
        for name, tensor in self.model.state_dict().items():
            if not isinstance(weights[name], DTensor):  # else the model's own, which starts anew
                fill(tensor, weights[name], f"checkpoint {origin}", name)


def whole_state(path: str | Path, part: str = "model") -> dict[str, Tensor]:
    """One of the state dicts of a checkpoint, put together, as a training in one process has it.

    Args:
        path: the folder of a sharded training, or the `.pth` file of another.
        part: "model" or "ema".

    Raises:
        FileNotFoundError: there is neither.
        ValueError: it is no whole checkpoint, or has no such part.
    """
    if not Path(path).is_dir():
        content = read_file(path)
        state = content.get(part) if isinstance(content, dict) else None
        if not isinstance(state, dict):
            raise _absent(path, part)
        return state_dict_of(state, path)
    if not is_sharded_checkpoint(path):
        raise ValueError(f"{path} is no whole sharded checkpoint: it has no .metadata")
    reader = FolderReader(path)
    loaded: dict[str, Any] = {
        key: torch.empty(entry.size, dtype=entry.properties.dtype)
        for key, entry in reader.read_metadata().state_dict_metadata.items()
        if key.startswith(f"{part}.") and isinstance(entry, TensorStorageMetadata)
    }
    if not loaded:
        raise _absent(path, part)
    loaded[_SCALARS] = ""
    load_sharded(loaded, reader, no_dist=True)
    with reading(path):
        scalars = set(json.loads(loaded.pop(_SCALARS)))
    named = {key.removeprefix(f"{part}."): tensor for key, tensor in loaded.items()}
    return {name: tensor.reshape(()) if name in scalars else tensor for name, tensor in named.items()}


def about(path: str | Path) -> dict[str, Any]:
    """:func:`read_about` of a file, or of the folder of a sharded training."""
    if not is_sharded_checkpoint(path):
        return read_about(str(path))
    loaded: dict[str, Any] = {_PROGRESS: ""}
    load_sharded(loaded, FolderReader(path), no_dist=True)
    with reading(path):
        progress = json.loads(loaded[_PROGRESS])
    return {key: progress[key] for key in (METADATA, CONFIG) if key in progress}


def _absent(path: str | Path, part: str) -> ValueError:
    hint = "was it trained with train.ema_decay?" if part == "ema" else "is it a checkpoint of a training?"
    return ValueError(f"{path} has no '{part}': {hint}")
