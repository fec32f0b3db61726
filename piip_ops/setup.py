"""The compiled operators of this folder; the rest of the distribution is in pyproject.toml."""

import sys
from pathlib import Path

from setuptools import setup

sys.path.insert(0, str(Path(__file__).parent / "building"))
from extension import COMMANDS, extension, wants_cuda

setup(
    packages=["piip_ops"],
    package_dir={"piip_ops": "."},
    ext_modules=[extension(wants_cuda())],
    cmdclass=COMMANDS,
)
