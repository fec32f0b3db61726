"""What whole models are exported with, operator by operator, in ONNX Runtime: small graphs, in seconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from ... import require

require.detectron2()
pytest.importorskip("onnxruntime", reason="needs piip[export]")

import onnx
import onnxruntime
import torch
from detectron2.modeling.poolers import ROIPooler
from torch import Tensor, nn
from torch.export import Dim

from piip.engine.config import load_config
from piip.export.boxes import paste_masks, suppressed, suppressed_by_class
from piip.export.images import test_files as images_of_the_test_set
from piip.export.operators import standard_operators
from piip.export.rcnn import pool
from piip_ops import deform_cross_attn, ms_deform_attn

from ..tiny_config import REPOSITORY


def test_images_are_asked_for_where_the_test_set_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for name in ("mask_rcnn_piip_128_96_64_shapes", "classifier_piip_96_48_24_patterns"):
        cfg = load_config(str(REPOSITORY / f"configs/quick/{name}.py"))
        with pytest.raises(FileNotFoundError, match="give images to compare with as --images"):
            images_of_the_test_set(cfg)


class Function(nn.Module):
    def __init__(self, function: Callable[..., Any], *parts: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


def in_onnx(
    function: Callable[..., Any], example: Sequence[Tensor], free: Sequence[Sequence[int]], path: Path
) -> Callable[..., list[Tensor]]:
    """A function in ONNX Runtime, traced with an example; free are the axes of each input that may change."""
    shapes = tuple(dict.fromkeys(axes, Dim.AUTO) for axes in free)
    with torch.no_grad():
        program = torch.export.export(Function(function), tuple(example), dynamic_shapes=(shapes,))
    standard = program.run_decompositions(standard_operators())
    torch.onnx.export(standard, opset_version=20, dynamo=True, verbose=False).save(str(path))
    assert {node.domain for node in onnx.load(path).graph.node} == {""}
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    return lambda *inputs: [
        torch.from_numpy(value)
        for value in session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})
    ]


def boxes(number: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner, size = (torch.rand(number, 2, generator=generator) for _ in range(2))
    return torch.cat([90 * corner, 90 * corner + 5 + 60 * size], dim=1)


def test_suppression(tmp_path: Path) -> None:
    """No box, one, and more than were traced."""

    def both(boxes: Tensor, scores: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        return suppressed(boxes, scores, 0.5), suppressed_by_class(boxes, scores, classes, 0.5)

    def inputs(number: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1)
        scores = torch.rand(number, generator=generator)
        return boxes(number), scores, torch.randint(0, 3, (number,), generator=generator)

    run = in_onnx(both, inputs(20), [[0], [0], [0]], tmp_path / "nms.onnx")
    for number in (20, 0, 1, 300):
        for found, wanted in zip(run(*inputs(number)), both(*inputs(number)), strict=True):
            assert torch.equal(found, wanted)
    assert len(run(*inputs(300))[1]) < 280  # something was suppressed


def test_pooling_and_pasting(tmp_path: Path) -> None:
    """Boxes of both levels, and none at all, whose masks are pasted."""
    pooler = ROIPooler(7, (1 / 4, 1 / 8), 0, "ROIAlignV2", canonical_box_size=48, canonical_level=3)

    def pooled(fine: Tensor, coarse: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        features = pool(pooler, [fine, coarse], boxes)
        return features, paste_masks(features[:, 0].sigmoid(), boxes, (fine.shape[2] * 4, fine.shape[3] * 4))

    def inputs(height: int, width: int, number: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(2)
        maps = (torch.randn(1, 3, height * k, width * k, generator=generator) for k in (2, 1))
        return (*maps, boxes(number))

    example = inputs(16, 20, 12)
    run = in_onnx(pooled, example, [[2, 3], [2, 3], [0]], tmp_path / "pool.onnx")
    for case in ((16, 20, 12), (20, 14, 30), (16, 20, 0)):
        for found, wanted in zip(run(*inputs(*case)), pooled(*inputs(*case)), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_attention(tmp_path: Path) -> None:
    """Both operators as GridSample, on maps of other sizes than those traced."""

    def attend(value: Tensor, offsets: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        (height, width), (rows, columns) = value.shape[1:3], offsets.shape[1:3]
        flat = value.flatten(1, 2)
        cross = deform_cross_attn(
            flat, offsets.flatten(1, 2), logits.flatten(1, 2), (rows, columns), (height, width)
        )
        places = (offsets.flatten(1, 2)[:, :, :, None] * 0.1).sigmoid()
        weights = logits.flatten(1, 2)[:, :, :, None].softmax(-1)
        return cross, ms_deform_attn(flat, [(height, width)], places, weights)

    def inputs(batch: int, value: tuple[int, int], query: tuple[int, int]) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(3)
        shapes = ((batch, *value, 2, 8), (batch, *query, 2, 4, 2), (batch, *query, 2, 4))
        return tuple(torch.randn(shape, generator=generator) for shape in shapes)

    run = in_onnx(attend, inputs(2, (5, 6), (3, 4)), [[0, 1, 2]] * 3, tmp_path / "attention.onnx")
    for case in ((2, (5, 6), (3, 4)), (1, (9, 7), (8, 11)), (3, (4, 4), (2, 7))):
        for found, wanted in zip(run(*inputs(*case)), attend(*inputs(*case)), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
