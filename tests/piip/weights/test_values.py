"""Values that a model cannot hold are refused by one function, wherever weights come in."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import piip
from piip.branches import Pretrained, published
from piip.classification.classifier import PIIPClassifier
from piip.library import registry
from piip.official import to_official_backbone, to_official_classifier
from piip.weights import zoo
from piip.weights.differences import check_values
from piip.weights.pretrained import load_pretrained

from ... import require
from ..models import tiny_branch, tiny_piip

KINDS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "NaN": (lambda x: torch.full_like(x, torch.nan), "holds NaN or infinite values"),
    "infinite": (lambda x: torch.full_like(x, -torch.inf), "holds NaN or infinite values"),
    "overflow": (lambda x: torch.full_like(x.double(), 1e300), "holds 1e.300, which torch.float32 does not"),
    "complex": (lambda x: x.to(torch.complex64), "is of torch.complex64, expected a floating-point type"),
    "integer": (lambda x: x.to(torch.int64), "is of torch.int64, expected a floating-point type"),
    "boolean": (lambda x: x.bool(), "is of torch.bool, expected a floating-point type"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", [None, {"a": torch.zeros(3)}])
def test_kinds(kind: str, model: Any) -> None:
    change, message = KINDS[kind]
    if model is None and kind == "overflow":
        return check_values({"a": change(torch.ones(3))}, "x.pth")  # it is as wide as it says
    with pytest.raises(ValueError, match=rf"x\.pth: a {message}"):
        check_values({"a": change(torch.ones(3))}, "x.pth", model)


def test_narrow_types() -> None:
    """70000 is beyond float16, and not beyond bfloat16; what rounds to the largest number is none of it."""
    state = {"a": torch.tensor([70000.0])}
    check_values(state, "x.pth", {"a": torch.zeros(1, dtype=torch.bfloat16)})
    with pytest.raises(ValueError, match=r"a holds 7e\+04, which torch\.float16 does not reach"):
        check_values(state, "x.pth", {"a": torch.zeros(1, dtype=torch.float16)})
    check_values({"a": torch.tensor([65519.0])}, "x.pth", {"a": torch.zeros(1, dtype=torch.float16)})
    check_values({"a": torch.ones(2).to(torch.float8_e4m3fn), "b": torch.zeros(0)}, "x.pth")


def test_counters_are_integers() -> None:
    norm = nn.BatchNorm2d(2).state_dict()
    check_values(norm, "x.pth")
    check_values(norm, "x.pth", norm)
    with pytest.raises(ValueError, match=r"batches_tracked is of torch\.float32, expected an integer type"):
        check_values({**norm, "num_batches_tracked": torch.tensor(1.0)}, "x.pth", norm)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "VIT_SIZES", {"T": (32, 12, 2), "S": (32, 12, 2), "B": (32, 12, 2)})
    sizes = (96, 64, 48)
    detector, classifier = zoo.models_of("detection")[0], zoo.models_of("classification")[0]
    entries = {
        "backbone": registry.Entry("TSB", sizes, detector, 14),
        "classifier": registry.Entry("TSB", sizes, classifier, classifier="deit"),
    }
    monkeypatch.setattr(registry, "MODELS", entries)


def save(state: dict[str, Tensor], folder: Path, container: str = "") -> str:
    torch.save({container: state} if container else state, folder / "weights.pth")
    return str(folder / "weights.pth")


def spoiled(state: dict[str, Tensor], key: str, kind: str) -> dict[str, Tensor]:
    return {**state, key: KINDS[kind][0](state[key])}


BIAS = "piip.branches.0.blocks.0.mlp.fc1.bias"


def pretrained(folder: Path, kind: str) -> None:
    state = spoiled(tiny_branch(16).state_dict(), "blocks.0.mlp.fc1.bias", kind)
    path = save(state, folder, "model")
    load_pretrained(tiny_branch(16, pretrained=Pretrained(source=path, family="deit3")))


def released_detector(folder: Path, kind: str) -> None:
    state = spoiled(piip.create_model("backbone").state_dict(), BIAS, kind)
    state = {f"backbone.{key}": value for key, value in to_official_backbone(state).items()}
    piip.create_model("backbone", pretrained=save(state, folder, "state_dict"))


def own_backbone(folder: Path, kind: str) -> None:
    path = save(spoiled(piip.create_model("backbone").state_dict(), BIAS, kind), folder)
    piip.create_model("backbone", pretrained=path)


def released_classifier(folder: Path, kind: str) -> None:
    state = spoiled(piip.create_model("classifier").state_dict(), BIAS, kind)
    piip.create_model("classifier", pretrained=save(to_official_classifier(state), folder, "model"))


def from_pretrained(folder: Path, kind: str) -> None:
    model = piip.create_model("backbone")
    model.save_pretrained(folder)
    save_file(spoiled(model.state_dict(), BIAS, kind), folder / "model.safetensors")
    type(model).from_pretrained(folder)


def classifier(folder: Path, kind: str) -> None:
    require.detectron2()
    from piip.classification.checkpoint import ClassifierCheckpointer

    model = PIIPClassifier(tiny_piip(dims=(64, 32), merge="linear"), 3)
    path = save(spoiled(model.state_dict(), BIAS, kind), folder, "model")
    ClassifierCheckpointer(model).load(path, [])


def checkpointer(folder: Path, kind: str) -> None:
    require.detectron2()
    from piip.engine.checkpoints.checkpoint import Checkpointer

    model = nn.Sequential(nn.Linear(2, 3))
    path = save(spoiled(model.state_dict(), "0.bias", kind), folder, "model")
    Checkpointer(model).load(path)


DOORS = [
    pretrained,
    released_detector,
    own_backbone,
    released_classifier,
    from_pretrained,
    classifier,
    checkpointer,
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
def test_every_door(door: Callable[[Path, str], None], kind: str, tmp_path: Path, small: None) -> None:
    with pytest.raises(ValueError, match=KINDS[kind][1]) as caught:
        door(tmp_path, kind)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a?b.pth", "a b#c.pth", "100%.pth", "é.pth", "a&b=c.pth"])
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_names_of_files(name: str, scheme: str, tmp_path: Path) -> None:
    """A path is a path, whatever would mean something else in an address."""
    require.detectron2()
    from urllib.parse import quote

    from piip.engine.checkpoints.checkpoint import Checkpointer

    model = nn.Sequential(nn.Linear(2, 3))
    torch.save({"model": model.state_dict()}, tmp_path / name)
    path = f"file://{quote(str(tmp_path / name))}" if scheme else str(tmp_path / name)
    other = nn.Sequential(nn.Linear(2, 3))
    Checkpointer(other).load(path)
    assert torch.equal(other[0].weight, model[0].weight)


@pytest.mark.parametrize("path", ["foo://x.pth", "file:///x?y.pth", "x?matching_heuristics=True", "x\0.pth"])
def test_paths_to_nothing(path: str) -> None:
    require.detectron2()
    from piip.engine.checkpoints.checkpoint import Checkpointer

    with pytest.raises((OSError, ValueError)) as caught:
        Checkpointer(nn.Linear(2, 3)).load(path)
    assert "\n" not in str(caught.value) and str(caught.value)


def test_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`tools/gather_checkpoint.py` ends in one line, too."""
    require.detectron2()
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "tools"))
    tool = importlib.import_module("gather_checkpoint")
    path = save({"a": torch.tensor([torch.nan])}, tmp_path, "model")
    with pytest.raises(SystemExit):
        tool.main([path, str(tmp_path / "x.safetensors")])
    assert "a holds NaN or infinite values" in capsys.readouterr().err


def test_xavier_of_a_kernel_in_another_memory_format() -> None:
    branch = tiny_branch(64, 1).to(memory_format=torch.channels_last)
    kernel = branch.patch_embed.proj.weight
    assert not kernel.is_contiguous()
    with torch.no_grad():
        kernel.zero_()
    branch.reset_parameters("xavier")
    bound = (6 / (kernel.shape[0] + kernel[0].numel())) ** 0.5
    assert 0.9 * bound < kernel.abs().max() <= bound
