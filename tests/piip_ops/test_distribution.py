"""The operators' own distribution, piip-ops."""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_folder_alone_can_be_built_from(tmp_path):
    """`pip install ./piip_ops` sees this folder only; torch is all that it needs."""
    source = tmp_path / "source"
    shutil.copytree(ROOT / "piip_ops", source, ignore=shutil.ignore_patterns("*.so", "build", "*.egg-info"))
    subprocess.run([sys.executable, "setup.py", "-q", "sdist"], cwd=source, check=True, capture_output=True)
    (archive,) = source.glob("dist/piip_ops-*.tar.gz")
    with tarfile.open(archive) as members:
        held = {name.partition("/")[2] for name in members.getnames()}
    sources = {path.relative_to(source).as_posix() for path in source.glob("csrc/**/*.*") if path.is_file()}
    assert {"csrc/register.cpp", "csrc/cuda/points.cuh", "csrc/cpu/simd.h"} <= sources <= held
    assert {
        "LICENSE",
        "README.md",
        "py.typed",
        "ops.py",
        "building/backend.py",
        "building/extension.py",
    } <= held
    metadata = (source / "piip_ops.egg-info" / "PKG-INFO").read_text()
    assert [line for line in metadata.splitlines() if line.startswith("Requires-Dist")] == [
        "Requires-Dist: torch>=2.6"
    ]


def test_the_project_holds_the_same_version():
    versions = [
        next(line for line in path.read_text().splitlines() if line.startswith("version = "))
        for path in (ROOT / "pyproject.toml", ROOT / "piip_ops" / "pyproject.toml")
    ]
    assert versions[0] == versions[1]
    assert (ROOT / "LICENSE").read_bytes() == (ROOT / "piip_ops" / "LICENSE").read_bytes()
