"""Runs the CUDA kernels without a GPU: compiled as C++, lane by lane, in place of the CPU's.

``PIIP_OPS_DEVICE=emulated-cuda pytest tests/piip_ops``. It shows what the sources compute, with shuffles,
vector widths and strides; not what a GPU makes of them, least of all atomics in parallel, or how fast.
"""

import hashlib
import os
import re
import subprocess
from pathlib import Path

import torch
from torch.utils.cpp_extension import include_paths, library_paths

import piip_ops  # noqa: F401  its own kernels are registered first: the last one counts

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
SOURCES = ROOT / "piip_ops" / "csrc"
# What no header can change: where the operators are registered, and the call of a kernel.
EDITS = [
    (r"TORCH_LIBRARY_IMPL\(piip_ops, CUDA, ", "TORCH_LIBRARY_IMPL(piip_ops, CPU, "),
    (r"(\w+<[^<>]*>)<<<(\w+), (\w+), 0, stream>>>\(", r"emulated_cuda::launch(\1, \2, \3, "),
]
# The undefined-behaviour sanitizer sees misaligned vectors, and the address sanitizer, where the process has
# been started with it (tools/sanitize_ops.sh), what lies outside a tensor.
CHECKS = "address,undefined" if "libasan" in os.environ.get("LD_PRELOAD", "") else "undefined"


def load_kernels() -> None:
    """Build the CUDA sources as C++, half a minute, and put them in the place of the CPU kernels."""
    source = (SOURCES / "cuda" / "deform_attn_cuda.cu").read_text()
    for pattern, replacement in EDITS:
        source, count = re.subn(pattern, replacement, source)
        if not count:
            raise RuntimeError(f"deform_attn_cuda.cu: nothing matches {pattern}; adapt emulated_cuda")
    headers = [*sorted(SOURCES.glob("*.h")), *sorted(SOURCES.glob("cuda/*.cuh")), *sorted(HERE.rglob("*.h"))]
    state = "".join([source, CHECKS, torch.__version__, *(header.read_text() for header in headers)])
    name = f"emulated_cuda_{hashlib.sha256(state.encode()).hexdigest()[:16]}"
    library = ROOT / "build" / f"{name}.so"
    if not library.exists():
        library.parent.mkdir(exist_ok=True)
        # Under a name of this process's own, for others may be building the same.
        scratch = library.with_name(f"{name}_{os.getpid()}")
        edited, built = scratch.with_suffix(".cpp"), scratch.with_suffix(".so")
        edited.write_text(source)
        command = [os.environ.get("CXX", "g++"), "-std=c++20", "-O2", "-shared", "-fPIC", str(edited)]
        command += [f"-fsanitize={CHECKS}", "-fno-sanitize-recover=undefined"]
        command += [f"-I{HERE / 'include'}", f"-I{SOURCES / 'cuda'}", f"-include{HERE / 'cuda_on_cpu.h'}"]
        command += [flag for path in include_paths() for flag in ("-isystem", path)]
        command += [f"-L{path}" for path in library_paths()] + ["-ltorch", "-ltorch_cpu", "-lc10"]
        subprocess.run([*command, "-o", str(built)], check=True)
        built.replace(library)
        edited.unlink()
    torch.ops.load_library(library)
