"""What holds for every test."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Iterator

import pytest

# Made before torch imports multiprocessing: functions at exit run last in, first out, and multiprocessing
# removes its own folder in this one.
_FOLDER = tempfile.mkdtemp(prefix="piip-tests-")
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)

import torch


@pytest.fixture(scope="session", autouse=True)
def temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What libraries and killed processes leave in the temporary folder is removed with it at the end.

    Its path is short: sockets of fork servers lie in it.
    """
    tmp_path_factory.getbasetemp()  # where pytest keeps folders of tests: as ever
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", _FOLDER)
        patch.setattr(tempfile, "tempdir", _FOLDER)
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Random weights and inputs are the same whatever ran before, in this process or in another.

    A hook, not a fixture: those of a module that build models come after it, too.
    """
    torch.manual_seed(0)
