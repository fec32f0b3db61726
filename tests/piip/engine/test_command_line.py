"""Every tool ends a mistake of its user in one line and status 2, and says nothing that nobody can act on."""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ... import require

require.detectron2()

from piip.engine.command_line import tool
from piip.quick.shapes import write_split

from ..tiny_config import QUICK_CONFIG, REPOSITORY

TOOLS = sorted((REPOSITORY / "tools").glob("*.py"))
QUICK = str(QUICK_CONFIG)
RELEASED = str(REPOSITORY / "configs/COCO/mask_rcnn_piip_tsb_1120_896_448_1x.py")


def run(
    name: str, *arguments: str, cwd: Path = REPOSITORY, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "tools" / name), *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        # Warnings as a user sees them, whatever the tests were started with.
        env={**os.environ, "PYTHONWARNINGS": "", **environment},
    )


EXPLAIN = """
import contextlib, io, json, os, runpy, sys
sys.path.insert(0, os.path.dirname(sys.argv[1]))  # as Python does for a script
said = {}
for path in sys.argv[1:]:
    sys.argv = [path, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        runpy.run_path(path, run_name="__main__")
    said[path] = out.getvalue()
print(json.dumps(said))
"""


QUICK_TO_EXPLAIN = [path for path in TOOLS if path.stem not in {"benchmark", "cost_tables", "crash_trials"}]


def test_help_imports_little() -> None:
    """Help comes within a second: what users call imports neither PyTorch nor Detectron2 for it."""
    count = (
        f"{EXPLAIN}print(sorted({{'torch', 'detectron2', 'numpy'}} & sys.modules.keys()), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", count, *map(str, QUICK_TO_EXPLAIN)], capture_output=True, text=True
    )
    assert done.stderr == "[]\n"


def test_help() -> None:
    """Every tool explains itself, `--traceback` included, without a warning; one process imports for all."""
    done = subprocess.run(
        [sys.executable, "-c", EXPLAIN, *map(str, TOOLS)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": ""},
    )
    assert (done.returncode, done.stderr) == (0, "")
    said = json.loads(done.stdout)
    assert list(said) == [str(path) for path in TOOLS]
    for path, text in said.items():
        assert "usage:" in text and "--traceback" in text, path


TRAIN, DEMO = "lazyconfig_train_net", "demo"
MISTAKES = {
    "config": (TRAIN, "--config-file nowhere.py", "config nowhere.py does not exist: check the path"),
    "key": (
        TRAIN,
        f"--config-file {QUICK} train.max_itr=5",
        "did you mean train.max_iter?",
    ),
    "output folder": (TRAIN, f"--config-file {QUICK} train.output_dir=/proc/none", "/proc/none"),
    "weights": (
        TRAIN,
        f"--config-file {QUICK} --eval-only train.init_checkpoint=none.pth train.output_dir=out",
        "none.pth does not exist: check the path",
    ),
    "device": (TRAIN, f"--config-file {QUICK} train.device=cudda train.output_dir=out", "cudda"),
    "data": (TRAIN, f"--config-file {QUICK} train.output_dir=out", "put the dataset there"),
    "demo key": (
        DEMO,
        f"--config-file {QUICK} --weights x.pth --input . --opts train.devise=cpu",
        "did you mean train.device?",
    ),
    "demo weights": (
        DEMO,
        f"--config-file {QUICK} --weights none.pth --input .",
        "none.pth does not exist: check the path",
    ),
    "count key": ("flop_count", f"--config-file {RELEASED} model.backbon=1", "did you mean model.backbone"),
    "benchmark": ("benchmark", "model nowhere.py", "config nowhere.py does not exist"),
    "convert": ("convert_checkpoint", "a.pth b.pth --config-file nowhere.py", "nowhere.py does not exist"),
    "compare": (
        "compare_results",
        f"--config-file {QUICK} --results none.json --output out",
        "put the dataset there",
    ),
    "make": ("make_shapes", "--image-size 3 --output shapes", "image size 3 is too small"),
    "tables": ("cost_tables", "--output /proc/none", "/proc/none"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(
    mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One line on stderr, in this process: what a run logs before it notices goes to stdout."""
    name, arguments, message = MISTAKES[mistake]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.syspath_prepend(str(REPOSITORY / "tools"))
    # Loggers would keep this test's stdout, which ends with it.
    monkeypatch.setattr("piip.engine.logs.screen.setup_logger", lambda *args, **settings: None)
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module(name).main(arguments.split())
    shown = capfd.readouterr().err
    assert len(shown.splitlines()) == 1, shown
    assert shown.startswith("error: ") and message in shown


def test_traceback_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    @tool
    def main(argv: object = None) -> None:
        raise ValueError("two\nlines")

    with pytest.raises(SystemExit, match="2"):
        main([])
    assert capsys.readouterr().err == "error: two lines\n"
    with pytest.raises(ValueError, match="two"):
        main(["--traceback"])


def test_what_is_not_installed(capsys: pytest.CaptureFixture[str]) -> None:
    @tool
    def main(argv: object = None) -> None:
        raise ModuleNotFoundError("No module named 'detectron2.config'", name="detectron2.config")

    with pytest.raises(SystemExit, match="2"):
        main([])
    shown = capsys.readouterr().err
    assert shown.startswith("error: detectron2.config is not installed: ") and "piip[detection]" in shown


def _type_error() -> None:
    raise TypeError("a bug")


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (_type_error, TypeError),
        (lambda: {}[3], KeyError),
        (lambda: [][3], IndexError),
        (lambda: int("x"), ValueError),
        (lambda: np.zeros(2) + np.zeros(3), ValueError),
        (lambda: torch.optim.SGD([torch.zeros(1)], lr=-1.0), ValueError),  # raised by a library's statement
    ],
)
def test_faults_of_the_program_are_not_hidden(
    fault: Callable[[], object], kind: type[Exception], capsys: pytest.CaptureFixture[str]
) -> None:
    """They keep their traceback, and ask to be reported: a KeyError would be "error: 3"."""

    @tool
    def main(argv: object = None) -> None:
        fault()

    with pytest.raises(kind):
        main([])
    assert "please open an issue" in capsys.readouterr().err


def test_errors_of_the_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    @tool
    def main(argv: object = None) -> None:
        (tmp_path / "none").read_text()

    with pytest.raises(SystemExit, match="2"):
        main([])
    assert capsys.readouterr().err.endswith("none'\n")


def test_a_reader_that_has_enough(tmp_path: Path) -> None:
    """`tool | head -1`: nothing on stderr, of help as of a long output."""
    long = tmp_path / "long.py"
    long.write_text(
        "from piip.engine.command_line import tool\n@tool\ndef main(argv=None):\n"
        "    for number in range(100_000): print(number)\nmain()\n"
    )
    for command in ([str(REPOSITORY / "tools/demo.py"), "--help"], [str(long)]):
        with subprocess.Popen(
            [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout is not None and process.stderr is not None
            process.stdout.close()
            assert process.stderr.read() == b""
        assert process.returncode in (0, 141)  # argparse itself passes over an unbuffered one


def test_in_worker_processes(tmp_path: Path) -> None:
    """Two processes: still one line."""
    arguments = ["--num-gpus", "2", "--config-file", QUICK, "train.max_itr=5"]
    done = run("lazyconfig_train_net.py", *arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: ")


@pytest.mark.parametrize("terminal", [True, False])
def test_training_shows_one_live_line_on_a_terminal(terminal: bool, tmp_path: Path) -> None:
    """Iteration, loss and the time left, rewritten in place; elsewhere only logs, and no warnings."""
    for split, number in (("train", 8), ("val", 2)):
        write_split(tmp_path / "shapes", split, number, image_size=64, seed=0)
    command = [
        *(sys.executable, str(REPOSITORY / "tools/lazyconfig_train_net.py"), "--config-file", QUICK),
        *(f"train.output_dir={tmp_path / 'out'}", "train.max_iter=3", "train.log_period=1"),
        "dataloader.train.total_batch_size=2",
    ]
    ours, theirs = pty.openpty() if terminal else os.pipe()
    if terminal:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        cwd=REPOSITORY,
        env={**os.environ, "DETECTRON2_DATASETS": str(tmp_path), "PYTHONWARNINGS": ""},
    ) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                chunk = os.read(ours, 4096)
            except OSError:  # a terminal whose other side was closed
                break
            if not chunk:
                break
            shown += chunk
    os.close(ours)
    text = shown.decode()
    assert process.returncode == 0, text
    if terminal:
        assert "training: 100%" in text and "3/3" in text and "loss" in text
        assert text.count("\n") <= 3, text  # the bar's last state stays
    else:
        assert text == ""
