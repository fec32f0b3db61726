"""Compiles the CUDA sources and runs nothing: ``python tools/lab/compile_cuda.py --arch 80 90``.

For machines that have nvcc and no GPU. Exits with 1 where nvcc fails or warns.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch.utils.cpp_extension import COMMON_NVCC_FLAGS, include_paths

SOURCES = Path(__file__).parents[2] / "piip_ops" / "csrc" / "cuda"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", nargs="+", default=["80", "90"], help="compute capabilities, no dot")
    parser.add_argument("--nvcc", default=shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc")
    args = parser.parse_args()
    if not Path(args.nvcc).exists():
        print(f"error: no nvcc at {args.nvcc}: install the CUDA toolkit or give --nvcc", file=sys.stderr)
        return 1
    # As isolated system headers, so that the only warnings left are about this project's code.
    headers = [*include_paths(), *map(str, Path(torch.__file__).parents[1].glob("nvidia/cu*/include"))]
    command = [args.nvcc, "-c", "-std=c++20", "-O3", "-Xcompiler=-fPIC,-Wall", *COMMON_NVCC_FLAGS]
    command += [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in args.arch]
    command += [flag for header in headers for flag in ("-isystem", header)]
    with tempfile.TemporaryDirectory() as folder:
        for source in sorted(SOURCES.glob("*.cu")):
            target = Path(folder, source.stem + ".o")
            done = subprocess.run([*command, str(source), "-o", str(target)], capture_output=True, text=True)
            messages = (done.stdout + done.stderr).strip()
            architectures = ", ".join(f"sm_{arch}" for arch in args.arch)
            print(f"{source.name} for {architectures}: {'failed' if done.returncode else 'compiled'}")
            if done.returncode or "warning" in messages:
                print(messages, file=sys.stderr)
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
