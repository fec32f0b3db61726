"""Files of every format say what the models say, at any size and batch."""

from __future__ import annotations

from pathlib import Path

import pytest

from ... import require

require.detectron2()

import torch

from piip.engine.command_line import user_error
from piip.export.check import check
from piip.export.formats import load, trace, write

from .models import image, small

SIZES = ((128, 128), (144, 160), (131, 190))


def test_files(tmp_path: Path) -> None:
    """torch.export with the custom operator and ONNX without: other sizes than the one traced, a batch."""
    pytest.importorskip("onnxruntime", reason="needs piip[export]")
    model = small("classifier")
    program = trace(model)
    images = [image(*size, seed=n) for n, size in enumerate(SIZES)]
    for kind, suffix in (("torch-export", ".pt2"), ("onnx", ".onnx")):
        path = tmp_path / f"model{suffix}"
        write(model, program, kind, path)
        run = load(model, kind, path)
        report = check(model, run, images)
        assert report.agrees, (kind, str(report))
        batch = torch.stack([images[0], images[0].flip(2), images[0].flip(1)]).float()
        wanted, found = (by(batch)["logits"].softmax(1) for by in (model.module, run))
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)  # the tolerance of scores
    domains = {node.domain for node in pytest.importorskip("onnx").load(str(path)).graph.node}
    assert domains == {""}  # standard operators only


def test_an_image_of_one_window(tmp_path: Path) -> None:
    """The graph is traced with several windows of two images; one of each, it must not refuse."""
    model = small("segmentor")
    write(model, trace(model), "torch-export", tmp_path / "model.pt2")
    run = load(model, "torch-export", tmp_path / "model.pt2")
    sizes = ((model.smallest, model.smallest), (model.smallest, 2 * model.smallest))
    report = check(model, run, [image(*size, seed=n) for n, size in enumerate(sizes)])
    assert report.images == 2 and report.agrees, str(report)


def test_the_library_that_is_missing_is_named() -> None:
    error = ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime")
    assert user_error(error) == "error: onnxruntime is not installed: pip install 'piip[export]'"
