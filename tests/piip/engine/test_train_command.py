"""The training tool as it is used: a run is interrupted from the keyboard, resumed, and evaluated."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ... import require

require.detectron2()

from piip.quick.shapes import write_split

from ..tiny_config import QUICK_CONFIG, REPOSITORY

PATIENCE = 300  # seconds; a busy machine takes tens of them to import PyTorch and Detectron2


def _heed_interrupts() -> None:
    """In the new process: what a shell starts in the background, these tests too, ignores interrupts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_interrupt_resume_evaluate(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    for split, number in (("train", 12), ("val", 4)):
        write_split(tmp_path / "datasets/shapes", split, number, image_size=64, seed=0)
    output = tmp_path / "output"

    def start(*arguments: str) -> subprocess.Popen[str]:
        tool = str(REPOSITORY / "tools/lazyconfig_train_net.py")
        settings = [f"train.output_dir={output}", "train.checkpointer.period=2", "train.log_period=1"]
        run = subprocess.Popen(
            [sys.executable, tool, "--config-file", str(QUICK_CONFIG), *arguments, *settings],
            cwd=REPOSITORY,
            env={**os.environ, "DETECTRON2_DATASETS": str(tmp_path / "datasets")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=_heed_interrupts,
        )
        request.addfinalizer(run.kill)  # nothing goes on where the test fails
        return run

    small = "dataloader.train.total_batch_size=2"
    run = start(small, "train.max_iter=1000000", "dataloader.train.num_workers=1")
    deadline = time.monotonic() + PATIENCE
    while not (output / "last_checkpoint").exists() and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    log, _ = run.communicate(timeout=PATIENCE)
    assert run.returncode == 130, log
    last = output / (output / "last_checkpoint").read_text()
    assert f"--resume continues from {last}" in log
    assert "Traceback" not in log

    iteration = int(last.stem.removeprefix("model_"))
    run = start("--resume", small, f"train.max_iter={iteration + 2}")
    log, _ = run.communicate(timeout=PATIENCE)
    assert run.returncode == 0, log
    assert f"Starting training from iteration {iteration + 1}" in log

    run = start("--eval-only", f"train.init_checkpoint={output / 'model_final.pth'}")
    log, _ = run.communicate(timeout=PATIENCE)
    assert run.returncode == 0, log
    assert "COCO average precision in percent" in log
