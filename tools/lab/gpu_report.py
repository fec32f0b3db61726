"""One report of what a machine with a GPU builds, computes and how fast: `tools/gpu_report.sh`.

Parts run one after the other, each in a process of its own with a time limit, and the report says of each
how it ended. Where one fails, the others go on.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Outcome", "Part", "main", "parts", "run_part", "write_report"]

_VITDET, _TSB, _SBL = (
    "configs/comparison/detectron2_vitdet_b.py",
    "configs/COCO/mask_rcnn_piip_tsb_1120_896_448_1x.py",
    "configs/COCO/mask_rcnn_piip_sbl_1568_1120_672_1x.py",
)
_ATTENTION = "model.backbone.piip.interaction.attention_precision=autocast"
_QUICK = "configs/quick/mask_rcnn_piip_128_96_64_shapes.py"
_SHOWN_LINES = 40  # of the log of a part that failed: a traceback with what led to it
_PRELOADED = ("torch", "piip.engine", "detectron2.engine", "piip.engine.train", "lab.latency")


@dataclass(frozen=True)
class Part:
    """One thing to find out.

    Attributes:
        name: of its files, too: `NAME.log` is what it printed, `NAME.json` what it measured.
        title: in the report.
        commands: command lines as one would give them after `python`; the first that fails ends the part.
        seconds: it may take.
        environment: variables to set.
    """

    name: str
    title: str
    commands: tuple[tuple[str, ...], ...]
    seconds: int
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class Outcome:
    """How a part ended.

    Attributes:
        part: which.
        status: "ok", "failed (...)" or "stopped after N s".
        seconds: it took.
        results: what it measured, from its JSON file; None where there is none.
        summary: the last line that it printed.
    """

    part: Part
    status: str
    seconds: float
    results: Any
    summary: str


def parts(output: Path, *, dry: bool) -> list[Part]:
    """All of them, in order.

    Args:
        output: the report's folder.
        dry: the same on a CPU, as small as it gets: to see that the parts run, not to learn anything.
    """
    device = "cpu" if dry else "cuda"

    def result(name: str) -> str:
        return str(output / f"{name}.json")

    this = ("-m", "lab.gpu_report")
    pytest = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist")
    ops = ["tools/benchmark.py", "ops", "--device", device, "--output", result("operators")]
    models = ("tools/benchmark.py", "model")
    printed: tuple[str, ...] = ("--device", device, "--format", "json")
    training = (
        "tools/lazyconfig_train_net.py",
        *("--config-file", _QUICK, f"train.device={device}", f"train.output_dir={output / 'training'}"),
        *(f"train.max_iter={2 if dry else 60}", f"train.log_period={1 if dry else 20}"),
        f"dataloader.train.num_workers={0 if dry else 4}",
    )
    shapes = (
        ("tools/make_shapes.py", "--train-images", "16", "--val-images", "4")
        if dry
        else ("tools/make_shapes.py",)
    )
    data = {"DETECTRON2_DATASETS": str(output / "datasets")}
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "gpu")
    build = () if dry else (("setup.py", "-q", "build_ext", "--inplace", "--force"),)
    operator_tests: tuple[str, ...]
    model_tests: tuple[str, ...]
    measured: list[tuple[str, tuple[str, ...], int]]
    if dry:
        ops += ["--only", "4 queries", "--runs", "1", "--dtype", "float32"]
        operator_tests = ("tests/piip_ops/test_values.py", "-k", "published_numbers")
        model_tests = ("tests/piip/test_device.py", "-k", "maps_and_gradients or bfloat16")
        measured = [("inference", (_QUICK, *printed, "--runs", "1", "--mode", "inference"), 300)]
    else:
        ops += ["--dtype", "float32", "bfloat16", "float16", "--batch", "1", "8"]
        operator_tests, model_tests = ("tests/piip_ops",), ("tests/piip/test_device.py",)
        printed += ("--runs", "7")
        settings = (_VITDET, _TSB, _SBL, *printed, "--precision", "bf16", "fp32", "--batch")
        compiled = (_TSB, *printed, "--precision", "bf16", "--batch", "2", "--compile")
        measured = [
            ("inference", (*settings, "1", "8", "--mode", "inference", "--optimized"), 200),
            ("training", (*settings, "2", "--mode", "training"), 150),
            ("compiled", (*compiled, "--mode", "inference", "training", "--variant", _ATTENTION), 270),
        ]
    # a process a card; FSDP makes what it shards out of meta tensors, compiled blocks among it
    fsdp = (*launcher, *training, "train.parallel=fsdp", "train.compile=True", "train.max_iter=20")
    spread = [
        Part("ddp", "A short training with DDP", ((*launcher, *training),), 75, data),
        Part("fsdp", "A short training with FSDP and compiled blocks", (fsdp,), 100, data),
    ]
    return [
        Part("machine", "Machine", ((*this, "--measure-machine", result("machine")),), 60),
        Part("build", "Build", (*build, (*this, "--show-build", device)), 150, {"FORCE_CUDA": "1"}),
        Part(
            "operator-tests",
            "Tests of the operators",
            ((*pytest, *operator_tests),),
            90,
            {"PIIP_OPS_DEVICE": "emulated-cuda" if dry else "cuda"},
        ),
        Part("model-tests", "Tests of the models", ((*pytest, *model_tests),), 120, {"PIIP_DEVICE": device}),
        Part("operators", "Operators", (tuple(ops),), 150),
        *(
            Part(
                f"models-{name}",
                f"Models, {name}",
                ((*models, *options, "--output", result(f"models-{name}")),),
                seconds,
            )
            for name, options, seconds in measured
        ),
        Part("training", "A short training", (shapes, training), 110, data),
        *([] if dry else spread),
    ]


def _execute(part: Part, log: str, fresh: bool) -> None:
    """Run a part's commands, printing to a file; ends this process with the status of the last.

    In new interpreters, or in this process, which then has to be a copy made for it.
    """
    os.setsid()  # all that it starts can be ended with it
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(part.environment)
    status = 0
    for command in part.commands:
        if status == 0:
            print(f"$ python {' '.join(command)}", flush=True)
            status = subprocess.call([sys.executable, *command]) if fresh else _run_here(command)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _run_here(command: Sequence[str]) -> int:
    """What `python COMMAND` would do, and its status."""
    is_module = command[0] == "-m"
    sys.argv = list(command[1:] if is_module else command)
    sys.orig_argv = [sys.executable, *command]
    try:
        if is_module:
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(command[0], run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    except BaseException:  # noqa: BLE001 - whatever it is, the report is about it
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def run_part(part: Part, output: Path, *, fresh: bool = True) -> Outcome:
    """Run a part in a process of its own.

    Args:
        part: which.
        output: folder for its files.
        fresh: run its commands in new interpreters: what this one has imported may be rebuilt meanwhile.
            Without, they run in copies of this process, and start faster.
    """
    log, measured = output / f"{part.name}.log", output / f"{part.name}.json"
    measured.unlink(missing_ok=True)
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_execute, args=(part, str(log), fresh))
    start = time.monotonic()
    process.start()
    process.join(part.seconds)
    status = "ok" if process.exitcode == 0 else f"failed (status {process.exitcode})"
    if process.exitcode is None:
        status = f"stopped after {part.seconds} s"
        assert process.pid is not None
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
    results = json.loads(measured.read_text()) if measured.is_file() else None
    lines = _printed(log)
    return Outcome(part, status, time.monotonic() - start, results, lines[-1] if lines else "")


def _printed(log: Path) -> list[str]:
    """Lines that a part printed; none where it has not begun."""
    return log.read_text(errors="replace").strip().splitlines() if log.is_file() else []


def _measure_machine(path: str) -> None:
    """What the card is, and how fast it multiplies and copies."""
    import torch

    from .latency import matmul_peak

    about: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda, "cpus": os.cpu_count()}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        card = torch.cuda.get_device_properties(0)
        about |= {
            "gpus": torch.cuda.device_count(),
            "name": card.name,
            "gpu_memory_gib": card.total_memory / 2**30,
        }
        about |= {
            "compute_capability": f"{card.major}.{card.minor}",
            "processors": card.multi_processor_count,
        }
        torch.backends.cuda.matmul.allow_tf32 = False
    for dtype in (torch.float32, torch.bfloat16):
        about[f"matmul_gflops_{str(dtype).removeprefix('torch.')}"] = matmul_peak(device, dtype)
    Path(path).write_text(json.dumps(about, indent=1))
    print(", ".join(f"{key} {value}" for key, value in about.items()))


def _show_build(device: str) -> None:
    """Fails where the operators have no kernels for the device.

    Raises:
        RuntimeError: so.
    """
    import piip_ops

    info = piip_ops.build_info()
    print(", ".join(f"{key}: {value}" for key, value in info.items()))
    if "kernels" not in info[device]:
        raise RuntimeError(f"the operators have no kernels for {device}: see what the compiler says above")


def write_report(outcomes: Sequence[Outcome], output: Path, *, dry: bool) -> None:
    """Write report.json and report.md into a folder."""
    content = {
        "dry_run": dry,
        "parts": [
            {
                "name": o.part.name,
                "status": o.status,
                "seconds": round(o.seconds, 1),
                "summary": o.summary,
                "results": o.results,
            }
            for o in outcomes
        ],
    }
    (output / "report.json").write_text(json.dumps(content, indent=1) + "\n")
    lines = ["# Report of a machine with a GPU", ""]
    if dry:
        lines += ["A dry run on the CPU: it shows that the parts run, and its figures mean nothing.", ""]
    lines += ["| part | ended | seconds | last line |", "|---|---|---:|---|"]
    for o in outcomes:
        last = o.summary.replace("|", "/")[:120]
        lines.append(f"| {o.part.title} | {o.status} | {o.seconds:.0f} | {last} |")
    for o in outcomes:
        if o.results is not None:
            lines += [
                "",
                f"## {o.part.title}",
                "",
                *_TABLES.get(o.part.name.partition("-")[0], _facts)(o.results),
            ]
    (output / "report.md").write_text("\n".join(lines) + "\n")


def _facts(results: dict[str, Any]) -> list[str]:
    return [f"- {key.replace('_', ' ')}: {_shown(value)}" for key, value in results.items()]


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(columns: dict[str, Callable[[dict[str, Any]], Any]], rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = (cell(row) for cell in columns.values())
        lines.append(f"| {' | '.join('' if cell is None else _shown(cell) for cell in cells)} |")
    return lines


def _operator_table(results: dict[str, Any]) -> list[str]:
    """Times against the reference, and against the bytes that must move at the speed of a copy."""
    bandwidth = results["copy_bytes_per_s"]

    def share(step: str) -> Callable[[dict[str, Any]], float | None]:
        def of(row: dict[str, Any]) -> float | None:
            moved = row[f"{step}_bytes"] / (row[f"operator_{step}_ms"] / 1e3)
            return moved / bandwidth if bandwidth else None

        return of

    columns: dict[str, Callable[[dict[str, Any]], Any]] = {
        "case": lambda r: r["case"],
        "batch": lambda r: r["batch"],
        "dtype": lambda r: r["dtype"],
    }
    for step, title in (("forward", "forward"), ("forward_backward", "forward and backward")):
        columns[f"{title}, ms"] = lambda r, s=step: r[f"operator_{s}_ms"]  # type: ignore[misc]
        columns[f"reference / operator, {title}"] = (
            lambda r, s=step: r[f"reference_{s}_ms"] / r[f"operator_{s}_ms"]  # type: ignore[misc]
        )
        columns[f"share of copy bandwidth, {title}"] = share(step)
    return _table(columns, results["rows"])


def _model_table(results: dict[str, Any]) -> list[str]:
    names = (
        "model",
        "mode",
        "precision",
        "batch",
        "detector_ms",
        "images_per_s",
        "peak_mb",
        "peak_fraction",
        "ratio_detector",
    )
    columns = {name.replace("_", " "): (lambda r, n=name: r.get(n)) for name in names}
    return [results["machine"], "", results["protocol"], "", *_table(columns, results["rows"])]  # type: ignore[arg-type]


_TABLES: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "operators": _operator_table,
    "models": _model_table,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run all parts and write the report; status 1 where a part failed."""
    parser = argparse.ArgumentParser(prog="tools/gpu_report.sh", description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="the same on a CPU, as small as it gets")
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/gpu-report"), help="folder (%(default)s)"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="PART",
        help="run these parts, such as operators; of the others an earlier report in the folder is kept",
    )
    parser.add_argument("--measure-machine", help=argparse.SUPPRESS)
    parser.add_argument("--show-build", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.measure_machine:
        _measure_machine(args.measure_machine)
        return 0
    if args.show_build:
        _show_build(args.show_build)
        return 0
    output = args.output.resolve()
    chosen = [part for part in parts(output, dry=args.dry_run) if not args.only or part.name in args.only]
    if not chosen:
        parser.error(f"no part is named {', '.join(args.only)}")
    output.mkdir(parents=True, exist_ok=True)
    if args.dry_run:
        for module in _PRELOADED:  # once for all parts
            importlib.import_module(module)
    outcomes = _earlier(output, dry=args.dry_run) if args.only else {}
    for part in chosen:
        print(f"{part.title} (at most {part.seconds} s) ...", flush=True)
        outcome = outcomes[part.name] = run_part(part, output, fresh=not args.dry_run)
        print(f"  {outcome.status} in {outcome.seconds:.0f} s: {outcome.summary}", flush=True)
        if outcome.status != "ok":
            end = "\n".join(_printed(output / f"{part.name}.log")[-_SHOWN_LINES:])
            print(textwrap.indent(end, "  | "), flush=True)
        in_order = [outcomes[each.name] for each in parts(output, dry=args.dry_run) if each.name in outcomes]
        write_report(in_order, output, dry=args.dry_run)  # what is there, whatever comes
    print(f"report: {output / 'report.md'}")
    return 0 if all(outcomes[part.name].status == "ok" for part in chosen) else 1


def _earlier(output: Path, *, dry: bool) -> dict[str, Outcome]:
    """What a report of the same kind already says in a folder, by part; nothing where there is none."""
    path = output / "report.json"
    report = json.loads(path.read_text()) if path.is_file() else {}
    if report.get("dry_run") != dry:
        return {}
    planned = {part.name: part for part in parts(output, dry=dry)}
    return {
        entry["name"]: Outcome(
            planned[entry["name"]], entry["status"], entry["seconds"], entry["results"], entry["summary"]
        )
        for entry in report["parts"]
        if entry["name"] in planned
    }


if __name__ == "__main__":
    sys.exit(main())
