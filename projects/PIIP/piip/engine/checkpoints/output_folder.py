"""The folder that a training writes to: locked, cleared of partial files, another run in it set aside."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from detectron2.utils import comm

from ...weights.files.atomic import remove_partial
from .run_lock import run_lock

__all__ = ["follow_move", "output_folder", "set_aside"]

_OF_A_RUN = ("last_checkpoint", "metrics.json")  # where one of them is, a run has begun
_FILES = (
    *("last_checkpoint", "model_[0-9]*", "model_final*", "config.yaml*", "environment.txt", "log.txt*"),
    *("metrics.json", "metrics.*.json", "events.out.tfevents.*", "wandb", "wandb-id.txt"),
    *("predictions", "ema", "*_instances_results.json", "instances_predictions.pth", "nonfinite-*.json"),
)
_FOLDER = "previous-"


@contextmanager
def output_folder(folder: str, *, resume: bool) -> Iterator[str]:
    """Prepare an output folder and hold its lock. Collective: every rank must call it.

    Args:
        folder: made if missing.
        resume: a run there is continued, not set aside.

    Yields:
        What the log should say of a run that was set aside, in the main process; "" else.

    Raises:
        BlockingIOError: another process trains there.
    """
    if not comm.is_main_process():
        comm.synchronize()
        yield ""
        return
    with run_lock(folder):
        remove_partial(folder)
        aside = None if resume else set_aside(folder)
        comm.synchronize()
        yield f"{folder} held another run, which is in {aside} now; --resume continues a run" if aside else ""


def set_aside(folder: str | os.PathLike[str]) -> Path | None:
    """Move what another run wrote into a numbered folder below; what no run writes stays.

    Args:
        folder: `train.output_dir`; nobody else may be writing there.

    Returns:
        The numbered folder; None where there was no run.
    """
    folder = Path(folder)
    if not any((folder / name).exists() for name in _OF_A_RUN):
        return None
    target = folder / f"{_FOLDER}{max(_numbers(folder), default=0) + 1}"
    target.mkdir()
    for path in {path for pattern in _FILES for path in folder.glob(pattern)}:
        path.rename(target / path.name)
    return target


def follow_move(path: str, folder: str | os.PathLike[str]) -> str:
    """Where a file of an output folder is now, if it is one that :func:`set_aside` moved last."""
    folder = Path(folder)
    if not path or Path(path).exists() or Path(path).parent.resolve() != folder.resolve():
        return path
    moved = folder / f"{_FOLDER}{max(_numbers(folder), default=0)}" / Path(path).name
    return str(moved) if moved.exists() else path


def _numbers(folder: Path) -> list[int]:
    names = (path.name.removeprefix(_FOLDER) for path in folder.glob(f"{_FOLDER}*"))
    return [int(name) for name in names if name.isdecimal()]
