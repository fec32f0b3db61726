"""A room that needs more than the core says in one line what to install."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from piip.extras import _EXTRAS, explain

REPOSITORY = Path(__file__).parents[2]
BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {packages!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
for module in {modules!r}:
    try:
        __import__(module)
        print(module, "imported")
    except ModuleNotFoundError as error:
        print(module, error)
"""


def blocked(packages: tuple[str, ...], *modules: str) -> list[str]:
    """What imports of the modules come to, in a process of its own where the packages are not installed."""
    code = BLOCKED.format(packages=packages, modules=modules)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_without_detectron2() -> None:
    """Modules that need it, by way of others too, say so; what is plain PyTorch works."""
    lines = blocked(
        ("detectron2", "omegaconf"),
        "piip.engine.train",
        "piip.segmentation.segmentor",
        "piip.measure.cost",
        "piip.detection.dino.official",
        "piip.segmentation.official",
        "piip.classification.official",
        "piip.official",
    )
    for line in lines[:3]:
        assert re.fullmatch(
            r"piip[\w.]+ (detectron2[\w.]* is not installed: `make setup` .*|omegaconf[\w.]* is not "
            r"installed: )pip install 'piip\[detection\]'.*",
            line,
        ), line
    assert all(line.endswith(" imported") for line in lines[3:]), lines


def test_a_room_names_its_extra() -> None:
    error = ModuleNotFoundError("No module named 'omegaconf'", name="omegaconf")
    assert str(explain(error)) == "omegaconf is not installed: pip install 'piip[detection]'"
    assert "piip[classification]" in str(explain(error, "classification"))
    assert explain(ModuleNotFoundError("No module named 'typo'", name="typo")) is None


def test_mistakes_stay_mistakes() -> None:
    (line,) = blocked((), "piip.engine.no_such_module")
    assert line == "piip.engine.no_such_module No module named 'piip.engine.no_such_module'"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is new in Python 3.11")
def test_extras_are_those_of_the_package() -> None:
    import tomllib

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    of_package = {"opencv-python-headless": "cv2", "hydra-core": "hydra"}
    for extra, packages in _EXTRAS.items():
        named = [re.split("[>=]", line)[0] for line in project["optional-dependencies"][extra]]
        brought = {of_package.get(name, name) for name in named}
        assert brought == set(packages) - {"tokenizers"}, extra
