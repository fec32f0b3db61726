"""Packages of the two folders and the compiled operators; the rest is in pyproject.toml."""

import sys
from pathlib import Path

from setuptools import find_packages, setup

sys.path.insert(0, str(Path(__file__).parent / "piip_ops" / "building"))
from extension import COMMANDS, extension, wants_cuda

PIIP_ROOT = "projects/PIIP"

setup(
    packages=[*find_packages(include=["piip_ops*"]), *find_packages(PIIP_ROOT, include=["piip*"])],
    package_dir={"piip": f"{PIIP_ROOT}/piip"},
    ext_modules=[extension(wants_cuda())],
    cmdclass=COMMANDS,
)
