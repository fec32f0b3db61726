"""setuptools' build backend, building the operators against the torch that is installed.

A C++ extension of PyTorch loads beside the version it was built with, and pip builds in an environment of
its own, into which a requirement "torch" would bring the newest one (and some gigabytes). So torch is asked
for only where the environment that is installed into has none; where it has, extension.py takes that.
"""

from __future__ import annotations

import site
from importlib.metadata import distributions

from setuptools.build_meta import build_editable, build_sdist, build_wheel, prepare_metadata_for_build_wheel

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_wheel",
    "site_packages",
]


def site_packages() -> list[str]:
    """Folders of the environment that is installed into; an isolated build does not import from them."""
    return [*site.getsitepackages(), site.getusersitepackages()]


def _requires() -> list[str]:
    return [] if next(distributions(name="torch", path=site_packages()), None) else ["torch"]


def get_requires_for_build_wheel(config_settings: object = None) -> list[str]:
    """Nothing but setuptools where torch is installed, else torch."""
    return _requires()


get_requires_for_build_editable = get_requires_for_build_sdist = get_requires_for_build_wheel
