"""Files of every format say what the models say, at any size and batch."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from ... import require

require.detectron2()

import torch

from piip.engine.command_line import user_error
from piip.export.check import check
from piip.export.formats import load, trace, write

from ..tiny_config import REPOSITORY
from .models import image, small

SIZES = ((128, 128), (144, 160), (131, 190))


def load_tool(name: str):
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("task", ["rcnn", "cascade", "dino", "segmentor", "classifier"])
def test_files(task: str, tmp_path: Path) -> None:
    """torch.export with the custom operator and ONNX without: other sizes than the one traced, a batch."""
    pytest.importorskip("onnxruntime", reason="needs piip[export]")
    model = small(task)
    program = trace(model)
    images = [image(*size, seed=n) for n, size in enumerate(SIZES)]
    for kind, suffix in (("torch-export", ".pt2"), ("onnx", ".onnx")):
        path = tmp_path / f"{task}{suffix}"
        write(model, program, kind, path)
        run = load(model, kind, path)
        report = check(model, run, images)
        assert report.agrees, (kind, str(report))
        if model.batches:
            batch = torch.stack([images[0], images[0].flip(2), images[0].flip(1)]).float()
            wanted, found = model.module(batch), run(batch)
            for name in model.outputs:
                assert found[name].shape == wanted[name].shape, (kind, name)
    domains = {node.domain for node in pytest.importorskip("onnx").load(str(path)).graph.node}
    assert domains == {""}  # standard operators only


@pytest.mark.slow
def test_aotinductor(tmp_path: Path) -> None:
    model = small("classifier")
    path = tmp_path / "model.pt2"
    write(model, trace(model), "aotinductor", path)
    report = check(model, load(model, "aotinductor", path), [image(64, 64), image(72, 120)])
    assert report.agrees, str(report)


def test_the_library_that_is_missing_is_named() -> None:
    error = ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime")
    assert user_error(error) == (
        "error: onnxruntime is not installed: export to ONNX needs pip install 'piip[export]'"
    )
