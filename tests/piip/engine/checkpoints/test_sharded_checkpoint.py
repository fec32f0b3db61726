"""Folders of sharded trainings: what is kept, when it is there, and what an interrupted write leaves."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn

from .... import require

require.detectron2()

from piip.engine.checkpoints.sharded_checkpoint import ShardedCheckpointer, is_sharded_checkpoint
from piip.weights.files.atomic import remove_partial

from ..processes import in_processes


def checkpointer(folder: Path, max_to_keep: int | None = None) -> ShardedCheckpointer:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = {"optimizer": None, "iteration": 0}
    trainer = SimpleNamespace(optimizer=optimizer, state_dict=lambda: state, load_state_dict=state.update)
    return ShardedCheckpointer(model, str(folder), max_to_keep=max_to_keep, trainer=trainer)


def save(folder: Path, names: list[str], max_to_keep: int | None = None) -> list[tuple[str, list[str]]]:
    """Where the pointer leads after each, and the folders that are there then."""
    saver = checkpointer(folder, max_to_keep)
    found = []
    for name in names:
        saver.save(name)
        saver.wait()
        torch.distributed.barrier()
        there = sorted(path.name for path in folder.iterdir() if path.is_dir())
        found.append(((folder / "last_checkpoint").read_text(), there))
        assert all(is_sharded_checkpoint(folder / each) for each in there)
        torch.distributed.barrier()
    return found


def test_the_pointer_is_there_when_waiting_ends(tmp_path: Path) -> None:
    names = [f"model_{number:07d}" for number in range(5)]
    for found in in_processes(2, save, tmp_path, names):
        assert [last for last, _ in found] == names


def test_folders_from_before_a_resumption_count(tmp_path: Path) -> None:
    """Those of a run that went further, in the same folder before, stay; so does the final one."""
    names = [f"model_{number:07d}" for number in range(8)]
    in_processes(1, save, tmp_path, [*names[:3], names[7], "model_final"])
    (found,) = in_processes(1, save, tmp_path, names[3:5], 2)
    assert found[0][1] == [names[2], names[3], names[7], "model_final"]
    assert found[1][1] == [names[3], names[4], names[7], "model_final"]


def test_one_name_twice(tmp_path: Path) -> None:
    """The second replaces the first; the only checkpoint is not cleared away as the oldest."""
    (found,) = in_processes(1, save, tmp_path, ["model_0000001"] * 2, 1)
    assert found == [("model_0000001", ["model_0000001"])] * 2


def interrupted(folder: Path) -> bool:
    """Save a name again, and fail in the midst of it; whether the first is as it was."""
    saver = checkpointer(folder)
    saver.save("model_0000001")
    saver.wait()
    before = {path.name: path.read_bytes() for path in (folder / "model_0000001").iterdir()}

    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError("No space left on device")

    dcp.FileSystemWriter.finish = fail  # type: ignore[method-assign]
    saver.save("model_0000001")
    with pytest.raises(OSError, match=r"could not be written.*No space left on device"):
        saver.wait()
    return {path.name: path.read_bytes() for path in (folder / "model_0000001").iterdir()} == before


def test_an_interrupted_write_leaves_the_checkpoint_of_that_name(tmp_path: Path) -> None:
    assert in_processes(1, interrupted, tmp_path) == [True]
    assert [path.name for path in remove_partial(tmp_path)] == [".model_0000001.part"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last_checkpoint", "model_0000001"]


def test_keeping_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_to_keep is 0: use at least 1"):
        checkpointer(tmp_path, 0)
