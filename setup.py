"""Packages of the two folders; everything else about the distribution is in pyproject.toml."""

from setuptools import find_packages, setup

PIIP_ROOT = "projects/PIIP"

setup(
    packages=[*find_packages(include=["piip_ops*"]), *find_packages(PIIP_ROOT, include=["piip*"])],
    package_dir={"piip": f"{PIIP_ROOT}/piip"},
)
