"""Times the operators against their reference, side by side in one process: ``tools/benchmark.py ops``."""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from piip_ops import (
    build_info,
    deform_cross_attn,
    deform_cross_attn_reference,
    ms_deform_attn,
    ms_deform_attn_reference,
)

HEADS = 16
DETR_SHAPES = [(100, 134), (50, 67), (25, 34), (13, 17)]
# Those of Hugging Face's own benchmark of its kernel, and RF-DETR's one level.
HUGGING_FACE_SHAPES = [(32, 32), (16, 16), (8, 8), (4, 4)]
RF_DETR_SHAPES = [(48, 48)]
# By default glibc returns freed pages to the system, and whoever runs after the reference pays for fetching
# them again: with these the heap stays warm, as it does in a model that runs for a while.
HEAP_SETTINGS = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
    "MALLOC_TOP_PAD_": str(1 << 28),
}
# Calls between two waits for a GPU, which works on one while the host prepares the next, as in a model.
GPU_CALLS = 20
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Case:
    """One call of an operator: a query grid looks at a value map, or queries at several maps."""

    name: str
    query_size: int  # height and width of the query grid; 0: ms_deform_attn
    shapes: list[tuple[int, int]]
    heads: int
    channels: int
    points: int = 4
    decoder_queries: int = 0  # of ms_deform_attn, anywhere; 0: one for every position of the maps

    @property
    def queries(self) -> int:
        return self.query_size**2 or self.decoder_queries or self.length

    @property
    def length(self) -> int:
        return sum(height * width for height, width in self.shapes)


def _cross(name: str, query_size: int, value_size: int, dim: int) -> Case:
    # value channels are half the query branch's width
    return Case(name, query_size, [(value_size, value_size)], HEADS, dim // 2 // HEADS)


CASES = [
    _cross("TSB 1120/896/448, B looks at S", 28, 56, 768),
    _cross("TSB 1120/896/448, S looks at B", 56, 28, 384),
    _cross("TSB 1120/896/448, S looks at T", 56, 70, 384),
    _cross("TSB 1120/896/448, T looks at S", 70, 56, 192),
    _cross("SBL 1568/1120/672, L looks at B", 42, 70, 1024),
    _cross("SBL 1568/1120/672, B looks at L", 70, 42, 768),
    _cross("SBL 1568/1120/672, B looks at S", 70, 98, 768),
    _cross("SBL 1568/1120/672, S looks at B", 98, 70, 384),
    Case("DETR encoder, 4 levels", 0, DETR_SHAPES, 8, 32),
    Case("DETR decoder, 300 queries", 0, DETR_SHAPES, 8, 32, 4, 300),
    Case("Hugging Face, 100 queries", 0, HUGGING_FACE_SHAPES, 8, 32, 4, 100),
    Case("Hugging Face, 300 queries", 0, HUGGING_FACE_SHAPES, 8, 32, 4, 300),
    Case("RF-DETR, 1300 queries", 0, RF_DETR_SHAPES, 16, 16, 2, 1300),
    Case("RF-DETR, 22100 queries", 0, RF_DETR_SHAPES, 16, 16, 2, 22100),
    _cross("4 queries: what a call costs", 2, 2, 192),
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], choices=sorted(DTYPES))
    parser.add_argument("--batch", nargs="+", type=int, default=[1], help="images in a call")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    parser.add_argument("--runs", type=int, default=9, help="timed calls, whose median counts")
    parser.add_argument("--compiled", action="store_true", help="time the compiled reference, too")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--output", type=Path, help="write the rows there as JSON, too")


def run(args: argparse.Namespace) -> None:
    """Print the protocol and a table of medians in milliseconds."""
    if any(os.environ.get(name) != value for name, value in HEAP_SETTINGS.items()):
        # glibc reads them when the process starts
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **HEAP_SETTINGS})
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {build_info()}")
    bandwidth = _copy_bandwidth() if args.device == "cuda" else None
    if bandwidth:
        print(f"{torch.cuda.get_device_name()}, copy bandwidth {bandwidth / 1e9:.0f} GB/s")
    settings = " ".join(f"{name}={value}" for name, value in HEAP_SETTINGS.items())
    timed = f"{args.runs} runs of {GPU_CALLS} calls" if args.device == "cuda" else f"{args.runs} calls"
    print(f"{settings}; median of {timed} after a throwaway one; offsets of 2 px standard deviation;")
    print("the reference runs in float32 whatever the type of the tensors; times in ms")
    header = f"{'case':32} {'B':>2} {'dtype':9} {'reference':>9} {'operator':>9} {'ratio':>6}"
    print(
        f"{header}  {'ref f+b':>9} {'op f+b':>9} {'ratio':>6}  load"
        + ("   GB/s  f+b GB/s" if bandwidth else "")
        + ("   compiled  ratio   f+b  ratio" if args.compiled else "")
    )
    rows = []
    for case in CASES:
        if args.only not in case.name:
            continue
        for batch in args.batch:
            for dtype in args.dtype:
                rows.append(_measure(case, batch, dtype, args))
                print(_line(rows[-1], bandwidth is not None), flush=True)
    if args.output:
        content = {
            "torch": torch.__version__,
            "build": build_info(),
            "copy_bytes_per_s": bandwidth,
            "rows": rows,
        }
        args.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _measure(case: Case, batch: int, dtype: str, args: argparse.Namespace) -> dict[str, Any]:
    """Medians in milliseconds, and the bytes that each pass cannot help to move.

    Forward reads its inputs and writes its output. Backward reads the inputs again, and the output's
    gradient, and writes one for each input.
    """
    inputs = _inputs(case, batch, DTYPES[dtype], args.device)
    cross = case.query_size > 0
    operator, reference = _call(case, cross, True), _call(case, cross, False)
    row: dict[str, Any] = {"case": case.name, "batch": batch, "dtype": dtype}
    contenders = {"reference": reference, "operator": operator}
    if args.compiled:
        contenders["compiled"] = torch.compile(reference, dynamic=False)
    for name, attend in contenders.items():
        row[f"{name}_forward_ms"] = 1e3 * _median(partial(_forward, attend, inputs), args)
        row[f"{name}_forward_backward_ms"] = 1e3 * _median(partial(_forward_backward, attend, inputs), args)
    with torch.no_grad():
        out = operator(*inputs)
    read, written = (sum(t.numel() * t.element_size() for t in tensors) for tensors in (inputs, [out]))
    row["forward_bytes"] = read + written
    row["forward_backward_bytes"] = 3 * read + 2 * written
    row["load"] = os.getloadavg()[0]
    return row


def _line(row: dict[str, Any], bandwidth: bool) -> str:
    line = f"{row['case']:32} {row['batch']:2} {row['dtype']:9}"
    for step in ("forward", "forward_backward"):
        slow, fast = row[f"reference_{step}_ms"], row[f"operator_{step}_ms"]
        line += f" {slow:9.3f} {fast:9.3f} {slow / fast:6.1f} "
    line += f" {row['load']:4.1f}"
    if bandwidth:
        for step, width in (("forward", 6), ("forward_backward", 9)):
            line += f" {row[f'{step}_bytes'] / row[f'operator_{step}_ms'] / 1e6:{width}.0f}"
    for step in ("forward", "forward_backward"):
        if (slow := row.get(f"compiled_{step}_ms")) is not None:
            line += f" {slow:9.3f} {slow / row[f'operator_{step}_ms']:6.1f}"
    return line


def _inputs(case: Case, batch: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor]:
    queries, levels = case.queries, len(case.shapes)
    value = torch.randn(batch, case.length, case.heads, case.channels, device=device)
    offsets = 2 * torch.randn(batch, queries, case.heads, levels, case.points, 2, device=device)
    logits = torch.randn(batch, queries, case.heads, levels, case.points, device=device)
    if case.query_size:
        return value.to(dtype), offsets.squeeze(3).to(dtype), logits.squeeze(3).to(dtype)
    sizes = torch.tensor(case.shapes, device=device).flip(1)  # (levels, 2): width, height
    if case.decoder_queries:
        centres = torch.rand(queries, 2)
    else:
        grids = [
            torch.meshgrid(torch.arange(w) / w, torch.arange(h) / h, indexing="xy") for h, w in case.shapes
        ]
        centres = torch.cat([torch.stack(grid, -1).reshape(-1, 2) for grid in grids])
    locations = centres.to(device).view(1, -1, 1, 1, 1, 2) + (offsets + 0.5) / sizes.view(-1, 1, 2)
    weights = logits.flatten(3).softmax(-1).view_as(logits)
    return value.to(dtype), locations, weights.to(locations.dtype)


def _call(case: Case, cross: bool, operator: bool) -> Callable[..., Tensor]:
    if cross:
        attend = deform_cross_attn if operator else deform_cross_attn_reference
        query_shape = (case.query_size, case.query_size)
        return lambda value, offsets, logits: attend(value, offsets, logits, query_shape, case.shapes[0])
    sample = ms_deform_attn if operator else ms_deform_attn_reference
    return lambda value, locations, weights: sample(value, case.shapes, locations, weights)


def _forward(attend: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> None:
    with torch.no_grad():
        attend(*inputs)


def _forward_backward(attend: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> None:
    leaves = [t.detach().requires_grad_() for t in inputs]
    out = attend(*leaves)
    torch.autograd.grad(out, leaves, torch.ones_like(out))


def _median(call: Callable[[], None], args: argparse.Namespace) -> float:
    call()
    calls = GPU_CALLS if args.device == "cuda" else 1
    times = []
    for _ in range(args.runs):
        start = _now(args.device)
        for _ in range(calls):
            call()
        times.append((_now(args.device) - start) / calls)
    return statistics.median(times)


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _copy_bandwidth() -> float:
    """Bytes read and written a second by a copy of 1 GiB on the GPU."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    target.copy_(source)
    start = _now("cuda")
    for _ in range(10):
        target.copy_(source)
    return 20 * source.numel() / (_now("cuda") - start)
