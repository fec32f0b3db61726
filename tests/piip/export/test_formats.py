"""Files of every format say what the models say, at any size and batch."""

from __future__ import annotations

from pathlib import Path

import pytest

from ... import require

require.detectron2()

import torch
from torch import Tensor, nn

from piip.engine.command_line import user_error
from piip.export.check import check
from piip.export.formats import load, trace, write
from piip.export.model import Exportable

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


class _Chosen(nn.Module):
    """A convolution over rows whose number only a run knows: what an R-CNN's heads do with boxes."""

    outputs = ("logits",)

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        crops = images[0].unfold(1, 7, 7).unfold(2, 7, 7).flatten(1, 2).transpose(0, 1)  # (N, 3, 7, 7)
        crops = crops.repeat(1, 6, 1, 1)[:, :16]
        bright = crops.mean(dim=(1, 2, 3)) > 0.5
        order = torch.cat([bright.nonzero()[:, 0], (~bright).nonzero()[:, 0]])
        return {"logits": self.conv(crops[order].contiguous()).flatten(1)}


def test_compiled_convolution_over_a_number_of_boxes_not_known_before(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = _Chosen().eval()
    model = Exportable(
        module=module, original=module, side=64, batches=False, smallest=1, largest=None, input_format="RGB"
    )
    write(model, trace(model), "aotinductor", tmp_path / "model.pt2")
    run = load(model, "aotinductor", tmp_path / "model.pt2")
    for size in ((77, 84), (91, 70)):
        images = torch.rand(1, 3, *size)
        with torch.inference_mode():
            wanted = module(images)["logits"]
        torch.testing.assert_close(run(images)["logits"], wanted, rtol=0, atol=1e-5)  # float32 rounding


def test_the_library_that_is_missing_is_named() -> None:
    error = ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime")
    assert user_error(error) == "error: onnxruntime is not installed: pip install 'piip[export]'"
