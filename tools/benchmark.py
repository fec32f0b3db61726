#!/usr/bin/env python
"""Benchmarks, side by side in one process.

tools/benchmark.py ops                   the attention operator against its reference
tools/benchmark.py end-to-end CONFIG     a whole PIIP with the operator and with its reference
tools/benchmark.py model CONFIG [CONFIG ...]   detectors: latency, memory, and what they make of the machine
tools/benchmark.py export CONFIG WEIGHTS       a model eager, compiled and in every exported format
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lab import operator_benchmark
from piip.engine.command_line import argument_parser, tool


@tool
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argument_parser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    ops = commands.add_parser("ops", help="the attention operator against its plain PyTorch reference")
    operator_benchmark.add_arguments(ops)
    ops.set_defaults(run=operator_benchmark.run)
    model = commands.add_parser("model", help="detectors: latency, throughput, memory")
    add_model_arguments(model)
    model.set_defaults(run=run_model)
    whole = commands.add_parser("end-to-end", help="a whole PIIP with the operator and with its reference")
    whole.add_argument("config", metavar="CONFIG", help="LazyConfig of a detector with a PIIP")
    whole.add_argument("--batch", type=int, default=1, help="images in a run (default: %(default)s)")
    whole.add_argument("--runs", type=int, default=3, help="timed runs, whose median counts")
    whole.add_argument("--threads", type=int, default=os.cpu_count(), help="of the CPU")
    whole.set_defaults(run=run_end_to_end)
    exported = commands.add_parser("export", help="a model eager, compiled and in every exported format")
    exported.add_argument("config", metavar="CONFIG", help="LazyConfig of the model")
    exported.add_argument("weights", metavar="WEIGHTS", help="checkpoint of the model")
    exported.add_argument(
        "--images", nargs="+", default=[], help="files, folders, globs (default: the test set)"
    )
    exported.add_argument("--runs", type=int, default=10, help="timed runs of each image")
    exported.add_argument("--threads", type=int, default=os.cpu_count(), help="of the CPU")
    exported.set_defaults(run=run_export)
    args = parser.parse_args(argv)
    args.run(args)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``model``."""
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="LazyConfigs; ratios are to the first")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--mode", nargs="+", default=["inference"], choices=["inference", "training"])
    parser.add_argument("--precision", nargs="+", default=["fp32"], choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1], help="images in a run")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the CPU")
    parser.add_argument("--runs", type=int, default=5, help="timed runs, whose median counts")
    parser.add_argument(
        "--onednn-linear",
        default="none",
        choices=["none", "piip", "all"],
        help="whose linear layers run in oneDNN on a CPU",
    )
    parser.add_argument(
        "--optimized",
        action="store_true",
        help="time inference of each PIIP a second time, after piip.optimize_for_inference, too",
    )
    parser.add_argument("--compile", action="store_true", help="measure each PIIP with compiled blocks, too")
    parser.add_argument(
        "--variant",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="measure each PIIP with its config changed so, too, compiled and optimised where asked",
    )
    parser.add_argument("--format", default="table", choices=["table", "markdown", "csv", "json"])
    parser.add_argument(
        "--output",
        type=Path,
        help="write there instead of to the screen, after each mode, precision and batch",
    )


def run_model(args: argparse.Namespace) -> None:
    """Measure detectors and print a row for each, mode, precision and batch."""
    # imported here: `ops` needs no Detectron2
    from lab.latency import PRECISIONS, Contender, Protocol, compare

    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda, but PyTorch finds no GPU: use --device cpu")
    torch.set_num_threads(args.threads)
    protocol = Protocol(device=args.device, runs=args.runs, onednn_linear=args.onednn_linear)
    contenders = [Contender.from_config(config, protocol) for config in args.configs]
    variants: list[list[str]] = [[], args.variant] if args.variant else [[]]
    changed = [
        Contender.from_config(config, protocol, compiled=compiled, overrides=overrides)
        for config, contender in zip(args.configs, contenders, strict=True)
        for overrides in variants
        for compiled in (False, True)
        if contender.is_piip and compiled <= args.compile and (overrides or compiled)
    ]
    about = {
        "machine": machine(args.device, args.threads),
        "protocol": f"median of {args.runs} interleaved runs after warm-up, "
        f"linear layers in oneDNN: {args.onednn_linear}",
    }
    rows: list[dict[str, Any]] = []
    for mode in args.mode:
        for precision in args.precision:
            optimized = []
            if args.optimized and mode == "inference":
                optimized = [
                    Contender.from_config(config, protocol, PRECISIONS[precision], overrides=overrides)
                    for config, contender in zip(args.configs, contenders, strict=True)
                    for overrides in variants
                    if contender.is_piip
                ]
            for batch in args.batch:
                print(f"measuring {mode}, {precision}, batch {batch}", file=sys.stderr, flush=True)
                rows += compare([*contenders, *changed, *optimized], precision, batch, mode, protocol)
                if args.output:  # what is there, should a later one fail
                    args.output.write_text(_written(about, rows, args.format) + "\n", encoding="utf-8")
    if not args.output:
        print(_written(about, rows, args.format))


def _written(about: dict[str, str], rows: list[dict[str, Any]], output_format: Any) -> str:
    from piip.flops import format_rows

    if output_format == "json":
        return json.dumps({**about, "rows": rows}, indent=1)
    if output_format == "csv":
        return format_rows(rows, "csv")
    return "\n".join([*about.values(), "", format_rows(rows, output_format)])


def run_end_to_end(args: argparse.Namespace) -> None:
    """Print what the operator saves of a forward pass and of a training step."""
    from lab.operator_share import compare_operators
    from piip.flops import format_rows

    torch.set_num_threads(args.threads)
    rows = compare_operators(args.config, batch=args.batch, runs=args.runs)
    print(machine("cpu", args.threads))
    print(f"{Path(args.config).stem}, float32, batch {args.batch}, median of {args.runs} runs taking turns\n")
    print(format_rows(rows, "table"))


def run_export(args: argparse.Namespace) -> None:
    """Print how long an image takes in every runtime."""
    from lab.exported_latency import compare_exported
    from piip.engine.config import load_config
    from piip.export.formats import require
    from piip.export.images import read_images
    from piip.export.model import load_exportable
    from piip.flops import format_rows

    require("onnx")
    torch.set_num_threads(args.threads)
    cfg = load_config(args.config)
    model = load_exportable(cfg, args.weights)
    # only three: read_images gives the fourth another size
    images = read_images(cfg, args.images, 3, input_format=model.input_format)
    with tempfile.TemporaryDirectory() as folder:
        rows = compare_exported(model, images, Path(folder), runs=args.runs)
    height, width = images[0].shape[1:]
    print(machine("cpu", args.threads))
    print(
        f"{Path(args.config).stem}, float32, one image of {height} x {width} px, {args.runs} runs of each\n"
    )
    print(format_rows(rows, "markdown"))


def machine(device: str, threads: int) -> str:
    """The processor that was measured, and the load on it."""
    if device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        info = Path("/proc/cpuinfo")
        lines = info.read_text().splitlines() if info.exists() else []
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        name = f"{names[0] if names else platform.processor()}, {threads} threads"
    return f"{name}; torch {torch.__version__}; load {os.getloadavg()[0]:.1f}"


if __name__ == "__main__":
    main()
