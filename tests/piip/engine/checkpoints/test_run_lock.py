"""One training a folder."""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path

import pytest

from .... import require

require.detectron2()

from piip.engine.checkpoints.run_lock import run_lock
from piip.engine.train import main

from ...tiny_config import QUICK_CONFIG


def test_the_second_is_refused(tmp_path: Path) -> None:
    """It says who is there, and touches nothing."""
    arguments = argparse.Namespace(
        config_file=str(QUICK_CONFIG),
        opts=[f"train.output_dir={tmp_path}"],
        data=[],
        eval_only=False,
        resume=True,
    )
    with run_lock(tmp_path):
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        with pytest.raises(
            BlockingIOError, match=rf"another run trains in .* \(process {os.getpid()} on .* since "
        ):
            main(arguments)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with run_lock(tmp_path):
        pass


def test_a_killed_run_leaves_no_lock(tmp_path: Path) -> None:
    """Not even while a data worker that it forked lives on."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with run_lock(tmp_path):
            worker = os.fork()
            if worker == 0:
                signal.pause()
            os.write(writer, str(worker).encode())
            signal.pause()
    worker = int(os.read(reader, 100))
    try:
        with pytest.raises(BlockingIOError), run_lock(tmp_path):
            pass
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with run_lock(tmp_path):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)
