"""A new run in the folder of another: what that left is kept, out of the way."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["follow_move", "set_aside"]

_OF_A_RUN = ("last_checkpoint", "metrics.json")  # where one of them is, a run has begun
_FILES = (
    *("last_checkpoint", "model_[0-9]*", "model_final*", "config.yaml*", "environment.txt", "log.txt*"),
    *("metrics.json", "metrics.*.json", "events.out.tfevents.*", "wandb", "wandb-id.txt"),
    *("predictions", "ema", "*_instances_results.json", "nonfinite-*.json"),
)
_FOLDER = "previous-"


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
