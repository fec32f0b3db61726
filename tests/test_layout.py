"""Rooms of the package `piip`, and which may import which (CONTRIBUTING.md says why)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "projects/PIIP/piip"

CORE = {"core", "branches", "weights", "flops", "inference"}
TASKS = {"detection", "classification", "segmentation", "multimodal"}
MAY_IMPORT = {  # room -> rooms of piip that it may import; itself goes without saying
    **dict.fromkeys(CORE, CORE),
    "engine": CORE,
    **dict.fromkeys(TASKS, CORE | {"engine"}),
    "official": CORE | TASKS,
    "library": CORE | {"classification"},
    "quick": CORE | TASKS | {"engine"},
    "export": CORE | {"engine", "detection", "segmentation", "classification"},
    "measure": CORE | TASKS | {"engine", "official", "export"},
    "serve": CORE | TASKS | {"engine", "measure", "quick"},
}
WITHOUT_DETECTRON2 = CORE | {"classification", "library", "multimodal"}
TRAIN = {"piip.classification.trainer", "piip.classification.experiment"}  # by the engine
MODULES = sorted(PACKAGE.rglob("*.py"))


def room(module: str) -> str:
    """The room of a module named from below `piip`: its folder, or "core" for the files beside them."""
    first = module.partition(".")[0]
    return first if (PACKAGE / first).is_dir() else "core"


def imported(file: Path, package: str) -> Iterator[str]:
    """Absolute names of all modules that a file imports, wherever in it."""
    tree = ast.parse(file.read_text())
    for block in ast.walk(tree):  # what only type checkers read imports nothing
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING":
            block.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def name(file: Path) -> str:
    return ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)


def test_every_room_has_a_rule() -> None:
    assert {room(name(file).removeprefix("piip.")) for file in MODULES} == set(MAY_IMPORT)


@pytest.mark.parametrize("file", MODULES, ids=name)
def test_imports_stay_within_the_rules(file: Path) -> None:
    own = room(name(file).removeprefix("piip."))
    for module in imported(file, name(file.parent)):
        top, _, below = module.partition(".")
        if top == "detectron2" and name(file) not in TRAIN:
            assert own not in WITHOUT_DETECTRON2, f"{own} runs without Detectron2, and imports {module}"
        assert top != "lab", "tools/lab is not installed"
        if top in {"transformers", "tokenizers", "accelerate"}:
            assert own == "multimodal", f"only multimodal needs transformers, and {own} imports {module}"
        if top == "piip":
            other = room(below)
            assert other == own or other in MAY_IMPORT[own], f"{own} may not import {other}: {module}"


def test_the_operator_knows_nothing_of_the_package() -> None:
    for file in (REPOSITORY / "piip_ops").rglob("*.py"):
        for module in imported(file, ".".join(file.parent.relative_to(REPOSITORY).parts)):
            assert module.partition(".")[0] not in {"piip", "detectron2"}, f"{file.name} imports {module}"


def test_images_are_read_and_written_in_one_place() -> None:
    """`piip.images` states how: upright once, 8 bits, errors that name the file, names that are not UTF-8."""
    others = ("Image.open", "Pillow.open", "cv2.imread", "cv2.imdecode", "cv2.imwrite", "cv2.imencode")
    for file in MODULES:
        if name(file) != "piip.images":
            tree = ast.parse(file.read_text())
            used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
            names = {alias.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for alias in n.names}
            assert not used & set(others), f"{file}: use piip.images"
            if "read_image" in names:
                assert "piip.images.read_image" in set(imported(file, name(file.parent))), file
