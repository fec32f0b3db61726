"""Builds the compiled operators, for the distribution of their own and for the project that holds them.

FORCE_CUDA=1 asks for the CUDA kernels where no toolkit is found by itself (FORCE_CUDA=0 leaves them out), and
TORCH_CUDA_ARCH_LIST says for which GPUs. A build that fails leaves the package usable, in plain PyTorch.
"""

import os
import shutil
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

from backend import site_packages

if find_spec("torch") is None:  # an isolated build: the torch that the operators will run with
    sys.path.extend(site_packages())

import torch
from setuptools import Extension
from setuptools.command.build_py import build_py
from setuptools.errors import BaseError
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension

# setup.py is run in its own folder, from which setuptools wants relative paths.
SOURCES = Path(os.path.relpath(Path(__file__).parents[1] / "csrc"))
# at::parallel_for runs in one thread unless the file that calls it is compiled with OpenMP.
CXX_FLAGS = ["-O3", "-g0", "-std=c++20", "-fopenmp", "-Wall"]
NVCC_FLAGS = ["-O3", "-std=c++20", "-lineinfo"]


def wants_cuda() -> bool:
    if (forced := os.environ.get("FORCE_CUDA")) is not None:
        return forced == "1"
    toolkit = CUDA_HOME is not None and shutil.which("nvcc", path=str(Path(CUDA_HOME, "bin"))) is not None
    return toolkit and torch.version.cuda is not None


def cuda_include_dirs() -> list[str]:
    """Headers that came with PyTorch's own CUDA packages, for an nvcc that has none beside it."""
    major = torch.version.cuda.split(".")[0]
    wheel = Path(torch.__file__).parents[1] / "nvidia" / f"cu{major}" / "include"
    return [str(wheel)] if wheel.is_dir() else []


def extension(cuda: bool) -> Extension:
    sources = sorted(str(path) for path in [*SOURCES.glob("*.cpp"), *SOURCES.glob("cpu/*.cpp")])
    if not cuda:
        return CppExtension(
            "piip_ops._C", sources, extra_compile_args=CXX_FLAGS, extra_link_args=["-fopenmp"]
        )
    built = CUDAExtension(
        "piip_ops._C",
        sources + sorted(str(path) for path in SOURCES.glob("cuda/*.cu")),
        include_dirs=cuda_include_dirs(),
        define_macros=[("PIIP_OPS_WITH_CUDA", None)],
        extra_compile_args={"cxx": CXX_FLAGS, "nvcc": NVCC_FLAGS},
        extra_link_args=["-fopenmp"],
    )
    # PyTorch brings the CUDA runtime along; a toolkit need not have one to link to.
    built.libraries.remove("cudart")
    return built


class LeaveOutSetup(build_py):
    """Leaves setup.py out, which lies among the package's modules."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        found = super().find_package_modules(package, package_dir)
        return [entry for entry in found if entry[:2] != ("piip_ops", "setup")]


class BuildWhatBuilds(BuildExtension):
    """Falls back from CUDA to CPU kernels, and from those to none, with one warning."""

    def build_extensions(self) -> None:
        attempts = [("CUDA", True), ("C++", False)] if wants_cuda() else [("C++", False)]
        problems = []
        for name, cuda in attempts:
            # In place: setuptools has already written its own attributes on the object.
            vars(self.extensions[0]).update(vars(extension(cuda)))
            try:
                super().build_extensions()
            except (BaseError, OSError, RuntimeError, subprocess.SubprocessError) as error:
                problems.append(f"the {name} build failed ({error})")
            else:
                break
        else:
            self.extensions = []
        if problems:
            warnings.warn(f"piip_ops: {'; '.join(problems)}; the rest is installed", stacklevel=2)


if wants_cuda() and not torch.cuda.is_available():
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX")

COMMANDS = {"build_ext": BuildWhatBuilds, "build_py": LeaveOutSetup}
