"""Folders of sharded trainings are read without running what is pickled in them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from piip.weights.files.sharded import FolderReader, load_sharded

STATE = {
    "model": {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)},
    "text": "{}",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    dcp.save(STATE, checkpoint_id=tmp_path / "folder", no_dist=True)
    return tmp_path / "folder"


def load(folder: Path) -> dict[str, Any]:
    state = {"model": {"a": torch.zeros(2, 3), "b": torch.zeros(2, dtype=torch.bfloat16)}, "text": ""}
    load_sharded(state, FolderReader(folder), no_dist=True)
    return state


def test_round_trip(folder: Path) -> None:
    state = load(folder)
    assert all(torch.equal(state["model"][key], STATE["model"][key]) for key in ("a", "b"))
    assert state["text"] == "{}"


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("code from the folder ran",)


def refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(ValueError) as caught:
        load(folder)
    line = str(caught.value)
    assert str(folder) in line and "\n" not in line
    assert "code from the folder ran" not in capsys.readouterr().out
    return line


@pytest.mark.parametrize("content", [Evil(), [Evil()], {"state_dict_metadata": Evil()}])
def test_the_index_runs_no_code(folder: Path, capsys: pytest.CaptureFixture[str], content: Any) -> None:
    (folder / ".metadata").write_bytes(pickle.dumps(content))
    assert "could run code" in refused(folder, capsys)


@pytest.mark.parametrize("name", ["os.system", "torch.hub.load", "torch.serialization.load", "builtins.eval"])
def test_only_classes_of_an_index(folder: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    module, _, attribute = name.rpartition(".")
    (folder / ".metadata").write_bytes(f"c{module}\n{attribute}\n(S'1'\ntR.".encode())
    assert f"class {name} is not part of an index" in refused(folder, capsys)


def test_values_run_no_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """PyTorch keeps what is no tensor as a pickle beside them, and would run that."""
    dcp.save({**STATE, "text": Evil()}, checkpoint_id=tmp_path / "folder", no_dist=True)
    capsys.readouterr()
    refused(tmp_path / "folder", capsys)


@pytest.mark.parametrize("content", [b"", b"junk", pickle.dumps(3), pickle.dumps({"a": 1}), b"\x80\x05"])
def test_damaged_index(folder: Path, capsys: pytest.CaptureFixture[str], content: bytes) -> None:
    (folder / ".metadata").write_bytes(content)
    refused(folder, capsys)


def changed_index(folder: Path, change: Any) -> None:
    path = folder / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    change(metadata)
    path.write_bytes(pickle.dumps(metadata))


def test_sizes_that_are_not_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def claim(metadata: Any) -> None:
        metadata.state_dict_metadata["model.a"].size = torch.Size([2**20, 2**20])

    changed_index(folder, claim)
    assert "it lists tensors of 4398046511108 bytes" in refused(folder, capsys)


@pytest.mark.parametrize("name", ["../x.distcp", "/etc/passwd", "a/b"])
def test_files_elsewhere(folder: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    def point(metadata: Any) -> None:
        for info in metadata.storage_data.values():
            info.relative_path = name

    changed_index(folder, point)
    assert "which is not in the folder" in refused(folder, capsys)


@pytest.mark.parametrize("attribute", ["state_dict_metadata", "storage_data"])
@pytest.mark.parametrize("value", [None, 3, {"a": 3}, {"model.a": None}])
def test_odd_index(folder: Path, capsys: pytest.CaptureFixture[str], attribute: str, value: Any) -> None:
    changed_index(folder, lambda metadata: setattr(metadata, attribute, value))
    refused(folder, capsys)


def test_cut_values(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (file,) = folder.glob("*.distcp")
    file.write_bytes(file.read_bytes()[:-400])
    refused(folder, capsys)
