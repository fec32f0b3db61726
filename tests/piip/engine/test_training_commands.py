"""The commands of docs/training.md: those fit their configs, and do at small size what the page says."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ... import require

require.detectron2()

from piip.engine.config import load_config
from piip.engine.settings import TrainSettings
from piip.quick.shapes import write_split
from piip.weights.files.tensors import read_state

from ..tiny_config import QUICK_CONFIG, REPOSITORY

PATIENCE = 600  # seconds; a busy machine takes tens of them to import PyTorch and Detectron2
TRAIN = "tools/lazyconfig_train_net.py"
SMALL = ["train.max_iter=4", "train.checkpointer.period=2", "train.log_period=1", "train.eval_period=0"]
SMALL += ["dataloader.train.total_batch_size=2", "train.compile=False"]  # compiling takes minutes on a CPU


def commands() -> list[list[str]]:
    """Those of the page that train, in its order, as the shell splits them."""
    page = (REPOSITORY / "docs/training.md").read_text()
    blocks = re.findall(r"```sh\n(.*?)```", page, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if TRAIN in line]


def test_every_command_fits_its_config() -> None:
    settings = []
    for command in commands():
        arguments = command[command.index(TRAIN) + 1 :]
        config = REPOSITORY / arguments[arguments.index("--config-file") + 1]
        overrides = [argument for argument in arguments if "=" in argument]
        settings.append(TrainSettings.of(load_config(str(config), overrides)))
    assert [s.parallel for s in settings] == ["ddp", "ddp", "ddp", "ddp", "ddp", "fsdp"]


def small(command: list[str], folder: Path, replaced: dict[str, str]) -> list[str]:
    """A command of the page on the quick config, with some of its words replaced."""
    words = [replaced.get(word, word) for word in command]
    words[words.index("--config-file") + 1] = str(QUICK_CONFIG)
    launcher = [sys.executable, "-m", "torch.distributed.run"]
    return [*launcher, *words[1:], *SMALL, f"train.output_dir={folder / 'output'}"]


def start(command: list[str], folder: Path, request: pytest.FixtureRequest) -> subprocess.Popen[str]:
    run = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env={**os.environ, "DETECTRON2_DATASETS": str(folder / "datasets"), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    request.addfinalizer(run.kill)  # nothing goes on where the test fails
    return run


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    for split, number in (("train", 12), ("val", 2)):
        write_split(tmp_path / "datasets/shapes", split, number, image_size=64, seed=0)
    return tmp_path


def test_one_machine_restarts_and_goes_on(shapes: Path, request: pytest.FixtureRequest) -> None:
    """The process dies in iteration 3 of 4; torchrun starts it again, and it goes on after the checkpoint."""
    dies_once = shapes / "dies_once.py"
    dies_once.write_text(
        f"""
import os, sys
sys.path.insert(0, {str(REPOSITORY / "tools")!r})
from piip.engine.train import Trainer
step = Trainer.run_step
def dying(trainer):
    if trainer.iter == 3 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os._exit(1)
    step(trainer)
Trainer.run_step = dying
from lazyconfig_train_net import main
main()
"""
    )
    (command,) = [c for c in commands() if "--standalone" in c]
    words = small(command, shapes, {"8": "1", TRAIN: str(dies_once)})
    words.insert(3, "--max-restarts=1")
    run = start(words, shapes, request)
    log, _ = run.communicate(timeout=PATIENCE)
    assert run.returncode == 0, log
    assert "Starting training from iteration 2" in log
    assert (shapes / "output/last_checkpoint").read_text() == "model_final.pth"


def test_two_machines_shard_a_model(shapes: Path, request: pytest.FixtureRequest) -> None:
    """The 6B command, a process on each of two "machines", and one file from what they wrote."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    (command,) = [c for c in commands() if "train.parallel=fsdp" in c]
    words = small(command, shapes, {"8": "1", "node0:29500": f"localhost:{port}"})
    runs = [start(words, shapes, request) for _ in range(2)]
    logs = [run.communicate(timeout=PATIENCE)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], "\n".join(logs)
    folder, target = shapes / "output/model_final", shapes / "model.safetensors"
    subprocess.run(
        [sys.executable, "tools/gather_checkpoint.py", folder, target],
        cwd=REPOSITORY,
        check=True,
        timeout=PATIENCE,
    )
    assert all(torch.isfinite(tensor).all() for tensor in read_state(target).values())
