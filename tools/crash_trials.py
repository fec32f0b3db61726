#!/usr/bin/env python
"""Kills a training again and again, and checks what is left. Too long for the test suite.

python tools/crash_trials.py --trials 50 --signal KILL --output outputs/crash-trials

A small detector is trained by tools/lazyconfig_train_net.py with --resume, and killed at moments drawn at
random: while it starts, in and between steps, and while it writes a checkpoint. After each kill, every
checkpoint must load whole, and the last one be at most one period behind the last iteration in metrics.json;
the next run must go on from it. After SIGTERM, no iteration may be lost, and the status be 75, once training
has begun. In the end, weights and optimizer must be bit for bit those of a run that nobody disturbed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import runpy
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import piip.engine.train  # noqa: F401 - for all trials at once
from lab.curves import read_metrics
from piip.engine.command_line import argument_parser, tool
from piip.engine.distributed.preemption import EXIT_STATUS
from piip.quick.shapes import write_split
from piip.weights.files.tensors import read_file, same_content

TOOL = Path(__file__).resolve().with_name("lazyconfig_train_net.py")
CONFIG = TOOL.parents[1] / "configs/quick/mask_rcnn_piip_128_96_64_shapes.py"
PERIOD = 4
KINDS = ("save", "step", "save", "step", "start")  # in turn
PATIENCE = 300.0  # seconds without news, after which a run counts as hung


class Trial:
    """A training in a folder, which is killed before it ends.

    It is the command line in a copy of this process, which has PyTorch and Detectron2 imported already.
    """

    def __init__(self, folder: Path, data: Path, iterations: int, workers: int) -> None:
        self.folder = folder
        settings = (
            f"train.output_dir={folder}",
            f"train.max_iter={iterations}",
            f"train.checkpointer.period={PERIOD}",
            "train.log_period=1",
            "dataloader.train.total_batch_size=2",
            f"dataloader.train.num_workers={workers}",
        )
        arguments = ["--config-file", str(CONFIG), "--resume", *settings]
        context = multiprocessing.get_context("fork")
        self.process = context.Process(target=_train, args=(arguments, data, folder.with_suffix(".log")))
        self.process.start()

    def kill(self, kind: str, number: signal.Signals) -> int | None:
        """Send it a signal at such a moment; returns its status, None where it had ended before."""
        if kind == "start":
            time.sleep(random.uniform(0, 5))
        else:
            begun = self.logged()
            self.wait(lambda: self.logged() > begun)
            time.sleep(random.uniform(0, 2))
        if kind == "save":
            self.wait(lambda: any(self.folder.glob(".model_*.part")), pause=0)
            time.sleep(random.uniform(0, 0.004))
        if not self.process.is_alive() or self.process.pid is None:
            return None
        os.kill(self.process.pid, number)
        self.process.join(PATIENCE)
        return self.process.exitcode

    def wait(self, condition: Callable[[], bool], pause: float = 0.02) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition() and self.process.is_alive():
            assert time.monotonic() < deadline, f"the run hangs: see {self.folder.with_suffix('.log')}"
            time.sleep(pause)

    def logged(self) -> int:
        """The last iteration in metrics.json, -1 where there is none."""
        if not (self.folder / "metrics.json").is_file() or not (self.folder / "metrics.json").stat().st_size:
            return -1
        return max(read_metrics(self.folder).get("total_loss", {-1: 0.0}))


def _train(arguments: Sequence[str], data: Path, log: Path) -> None:
    """Run the command line in this process, printing to a file."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ["DETECTRON2_DATASETS"] = str(data)
    sys.argv = [str(TOOL), *arguments]
    runpy.run_path(str(TOOL), run_name="__main__")


def check(folder: Path, logged: int) -> tuple[int, bool]:
    """What a kill left: iterations lost, and whether a file was half written, aside."""
    for path in folder.glob("*.pth"):
        read_file(path)  # raises where it is not whole
    last = folder / "last_checkpoint"
    saved = read_file(folder / last.read_text())["iteration"] if last.is_file() else -1
    assert logged - saved <= PERIOD, f"iteration {logged} was reached, {saved} is saved"
    return logged - saved, any(folder.glob(".*.part"))


@tool
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argument_parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=50, help="kills (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("outputs/crash-trials"), help="an empty folder")
    parser.add_argument("--signal", default="KILL", choices=["KILL", "TERM"], help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    args = parser.parse_args(argv)
    random.seed(args.seed)
    torch.set_num_threads(1)  # copies of a process have none of its threads
    output = args.output.resolve()
    for split, number in (("train", 12), ("val", 4)):
        write_split(output / "datasets/shapes", split, number, image_size=64, seed=0)
    iterations = 15 * args.trials
    kills: Counter[str] = Counter()
    statuses: Counter[int] = Counter()
    halves, lost = 0, []
    while sum(kills.values()) < args.trials:
        kind = KINDS[sum(kills.values()) % len(KINDS)]
        # one more process that dies with it, or lives on
        trial = Trial(output / "killed", output / "datasets", iterations, workers=int(kind == "start"))
        status = trial.kill(kind, signal.Signals[f"SIG{args.signal}"])
        assert status is not None, f"the run ended by itself: see {trial.folder.with_suffix('.log')}"
        kills[kind] += 1
        statuses[status] += 1
        behind, half = check(trial.folder, trial.logged())
        if args.signal == "TERM" and kind != "start":
            assert (behind, status) == (0, EXIT_STATUS), f"{behind} iterations lost, status {status}"
        lost.append(behind)
        halves += half
        print(
            f"kill {sum(kills.values())} ({kind}) at {trial.logged()}: {behind} lost, half file: {half}",
            flush=True,
        )
    for name in ("killed", "undisturbed"):
        process = Trial(output / name, output / "datasets", iterations, workers=0).process
        process.join()
        assert process.exitcode == 0, f"see {output / name}.log"
    killed, undisturbed = (
        read_file(output / f"{name}/model_final.pth") for name in ("killed", "undisturbed")
    )
    for checkpoint in (killed, undisturbed):
        checkpoint.pop("config")  # names the output folder
    assert same_content(killed, undisturbed), "the weights differ from those of a run without kills"
    assert not list((output / "killed").glob(".*.part"))
    moments = ", ".join(f"{number} in {kind}" for kind, number in kills.items())
    print(
        f"{args.trials} times SIG{args.signal} ({moments}), status {dict(statuses)}: {halves} left a half "
        f"file aside, no checkpoint was damaged, at most {max(lost)} iterations of a period of {PERIOD} were "
        f"lost; after {iterations} iterations all is bit for bit as without kills"
    )


if __name__ == "__main__":
    main()
