"""What README, Makefile and CI say of one another is true."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text()
MAKEFILE = (REPOSITORY / "Makefile").read_text()
PAGES = [
    *(REPOSITORY / name for name in ("README.md", "projects/PIIP/README.md", "CONTRIBUTING.md")),
    *sorted((REPOSITORY / "docs").rglob("*.md")),
]
WRITTEN_IN_A_TUTORIAL = "configs/mine/"


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *arguments], cwd=REPOSITORY, capture_output=True, text=True)


def shell_commands(page: Path) -> list[str]:
    """Commands in a page's shell blocks, continued lines joined, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split(" #")[0].strip() for line in lines if line.strip()]


def test_targets_the_readme_names() -> None:
    """Every `make X` of the README is a target that explains itself in `make help`."""
    named = set(re.findall(r"\bmake ([a-z][a-z0-9-]*)", README))
    assert {"demo", "test", "setup", "help"} <= named
    listed = {line.split()[0] for line in make("help").stdout.splitlines()}
    assert named <= listed
    assert "help" in listed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_files_the_pages_name(page: Path) -> None:
    """Tools, configs and linked files exist; the links of docs/ are checked where the site is built."""
    text = page.read_text()
    named = re.findall(r"(?:tools|configs)/[\w./]+\.py", text)
    linked = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    for name in named:
        assert name.startswith(WRITTEN_IN_A_TUTORIAL) or (REPOSITORY / name).is_file(), name
    for link in linked if page.parent in (REPOSITORY, REPOSITORY / "projects/PIIP") else []:
        assert (page.parent / link).exists(), link


@pytest.mark.parametrize(
    "command", [c for page in PAGES for c in shell_commands(page) if c.startswith("python ")]
)
def test_options_the_pages_use(command: str) -> None:
    """A tool knows every option that a page gives it."""
    tool, *arguments = command.split()[1:]
    source = (REPOSITORY / tool).read_text()
    if "default_argument_parser" in source:  # Detectron2's
        source += "--config-file --resume --eval-only --num-gpus --num-machines --machine-rank --dist-url"
    for option in (argument for argument in arguments if argument.startswith("--")):
        assert option in source, f"{tool} has no option {option}"


def test_ci_runs_the_readmes_test_command() -> None:
    assert "make test" in shell_commands(REPOSITORY / "README.md")
    script = (REPOSITORY / ".ci/run").read_text()
    assert re.search(r"^PIIP_REQUIRE_DETECTRON2=1 make test$", script, re.MULTILINE)


def test_unreachable_detectron2_is_one_clear_line() -> None:
    """It names the variable that is the way out."""
    for source in ("git+file:///nowhere/detectron2.git@abc", "/nowhere/detectron2"):
        refused = make("--silent", "check-detectron2", f"DETECTRON2={source}")
        assert refused.returncode != 0
        its_own = re.compile(r"make(\[\d+\])?: \*\*\*")  # numbered where a make runs these tests
        lines = [line for line in refused.stderr.splitlines() if not its_own.match(line)]
        assert len(lines) == 1
        assert lines[0].startswith(f"error: Detectron2 cannot be reached at {source}: give a local checkout")
        assert "make setup DETECTRON2=" in lines[0]


def test_every_requirement_is_pinned_and_consistent() -> None:
    """Requirements name one version a Python, and the constraints the same."""

    def pins(name: str) -> set[str]:
        lines = (REPOSITORY / name).read_text().splitlines()
        return {line.replace(" ", "") for line in lines if line and not line.startswith(("#", "-"))}

    required = pins("requirements.txt") | pins("requirements-dev.txt")
    assert all("==" in line for line in required)
    assert required <= pins("constraints.txt")


def test_versions_agree() -> None:
    """pyproject.toml, CITATION.cff and the newest entry of CHANGELOG.md name one version."""
    version = re.search(r'^version = "(.*)"$', (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)
    cited = re.search(r"^version: (.*)$", (REPOSITORY / "CITATION.cff").read_text(), re.MULTILINE)
    changed = re.search(r"^## (\S+)", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert version and cited and changed
    assert version[1] == cited[1] == changed[1]


def test_hooks_run_the_pinned_linters() -> None:
    hooks = (REPOSITORY / ".pre-commit-config.yaml").read_text()
    pins = (REPOSITORY / "requirements-dev.txt").read_text()
    for tool, repository in (("ruff", "ruff-pre-commit"), ("clang-format", "mirrors-clang-format")):
        pinned = re.search(rf"^{tool}==(.*)$", pins, re.MULTILINE)
        hooked = re.search(rf"{repository}\n    rev: v(.*)", hooks)
        assert pinned and hooked and pinned[1] == hooked[1], tool


@pytest.mark.parametrize("workflow", sorted((REPOSITORY / ".github/workflows").glob("*.yml")), ids=str)
def test_workflows(workflow: Path) -> None:
    """They parse, and every `make X` they run is a target."""
    jobs = yaml.safe_load(workflow.read_text())["jobs"]
    steps = [step for job in jobs.values() for step in job["steps"]]
    assert all("uses" in step or "run" in step for step in steps)
    listed = {line.split()[0] for line in make("help").stdout.splitlines()}
    for step in steps:
        for target in re.findall(r"\bmake (\S+)", step.get("run", "")):
            assert target in listed


def test_every_dependency_of_the_package_is_pinned_for_development() -> None:
    """What pyproject.toml asks for, extras included, is what requirements.txt pins."""
    text = (REPOSITORY / "pyproject.toml").read_text()
    asked = re.findall(r'^    "([a-z][\w-]*)[^"]*",$', text.partition("[tool.")[0], re.MULTILINE)
    pinned = re.findall(r"^([a-z][\w-]*)==", (REPOSITORY / "requirements.txt").read_text(), re.MULTILINE)
    assert set(asked) <= set(pinned)


def test_the_licence_is_what_it_is_called() -> None:
    assert "Apache License" in (REPOSITORY / "LICENSE").read_text()[:300]


def test_only_what_users_have_is_referred_to() -> None:
    """The text this was built from is not part of the project."""
    name = "SP" + "EC"
    found = subprocess.run(["git", "grep", "-nw", name], cwd=REPOSITORY, capture_output=True, text=True)
    assert found.stdout == ""


def test_the_build_takes_the_torch_that_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks for torch only where there is none: another version's operators would not load."""
    spec = importlib.util.spec_from_file_location("backend", REPOSITORY / "piip_ops/building/backend.py")
    assert spec and spec.loader
    backend = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(backend)
    installed = tmp_path / "torch-2.14.1+cpu.dist-info"
    monkeypatch.setattr(backend, "site_packages", lambda: [str(tmp_path)])
    assert backend.get_requires_for_build_wheel() == ["torch"]
    installed.mkdir()
    (installed / "METADATA").write_text("Name: torch\nVersion: 2.14.1+cpu\n")
    assert backend.get_requires_for_build_wheel() == []


def test_the_source_distribution_can_be_built_from(tmp_path: Path) -> None:
    """It holds the build backend, the tables and every C++ and CUDA file, headers too."""
    source = tmp_path / "source"
    source.mkdir()
    files = ["CHANGELOG.md", "CITATION.cff", "LICENSE", "MANIFEST.in", "README.md"]
    for file in [*files, "pyproject.toml", "setup.py"]:
        shutil.copy(REPOSITORY / file, source)
    for folder in ("piip_ops", "projects"):
        shutil.copytree(REPOSITORY / folder, source / folder)
    subprocess.run([sys.executable, "setup.py", "-q", "sdist"], cwd=source, check=True, capture_output=True)
    (archive,) = source.glob("dist/*.tar.gz")
    with tarfile.open(archive) as members:
        held = {name.partition("/")[2] for name in members.getnames()}
    sources = {
        path.relative_to(REPOSITORY).as_posix()
        for path in (REPOSITORY / "piip_ops/csrc").rglob("*.*")
        if path.is_file()
    }
    assert {path for path in sources if path.endswith(".h")} and sources <= held
    building = {"setup.py", "piip_ops/building/backend.py", "piip_ops/building/extension.py"}
    assert building | {"LICENSE", "projects/PIIP/piip/backbone.py"} <= held
