"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from piip.weights.files.atomic import atomic, remove_partial
from piip.weights.files.tensors import write_file

BEFORE = b"what was there before"


@pytest.fixture
def full_disk() -> Iterator[None]:
    """The system takes no more than 20 kB a file from this process, and says so as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(BEFORE)
    with atomic(path) as file:
        file.write(b"new")
        assert path.read_bytes() == BEFORE
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["x"]


def test_it_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order that survives a power cut: contents, then the name, then the folder that holds the name."""
    steps = []
    sync, rename = os.fsync, Path.replace

    def noted_sync(descriptor: int) -> None:
        steps.append("folder" if Path(f"/proc/self/fd/{descriptor}").is_dir() else "contents")
        sync(descriptor)

    def noted_rename(part: Path, target: Path) -> Path:
        steps.append("name")
        return rename(part, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(Path, "replace", noted_rename)
    with atomic(tmp_path / "x") as file:
        file.write(b"new")
    assert steps == ["contents", "name", "folder"]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_full_disk(tmp_path: Path, full_disk: None, suffix: str) -> None:
    """One line that says so, nothing half written, and the file from before."""
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(BEFORE)
    with pytest.raises(OSError, match=r"was not written \(.*File too large.*MiB are free") as caught:
        write_file({"a": torch.zeros(10_000)}, path)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == BEFORE
    assert names(tmp_path) == [path.name]


def test_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="of the caller"), atomic(tmp_path / "x"):
        raise RuntimeError("of the caller")
    assert names(tmp_path) == []


def test_what_killed_processes_leave_is_removed(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        with atomic(tmp_path / "x") as file:
            file.write(b"half of")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    (part,) = names(tmp_path)
    (tmp_path / "y").write_bytes(BEFORE)
    assert [path.name for path in remove_partial(tmp_path)] == [part]
    assert names(tmp_path) == ["y"]
