"""What is traced says, without a tracer, what the models say."""

from __future__ import annotations

import pytest

from ... import require

require.detectron2()

import torch
import torch.nn.functional as F
from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from torch import nn

from piip.export.boxes import anchors, paste_masks, suppressed, suppressed_by_class
from piip.export.check import Report, check, compare
from piip.export.errors import ExportError, blame
from piip.export.model import exportable
from piip.export.operators import standard_operators

from .models import image, small, small_model

SIZES = ((128, 128), (144, 160), (131, 190))  # the last divides by nothing


@pytest.mark.parametrize("task", ["rcnn", "cascade"])
def test_rcnn_is_detectron2s(task: str) -> None:
    """Same detections, but for the rounding of float32: boxes are decoded in another order."""
    model = small(task)
    report = check(model, model.module, [image(*size, seed=n) for n, size in enumerate(SIZES)])
    assert report.detections > 50 and report.unmatched == 0
    assert report.boxes < 1e-3 and report.scores < 1e-5 and report.masks < 1e-3


@torch.no_grad()
def test_rcnn_that_finds_nothing() -> None:
    model = small("rcnn")
    model.original.roi_heads.box_predictor.test_score_thresh = 1.0
    found = model.module(image()[None].float())
    assert [tuple(found[name].shape) for name in found] == [(0, 4), (0,), (0,), (0, 128, 128)]


@pytest.mark.parametrize("task", ["dino", "segmentor", "classifier"])
@torch.no_grad()
def test_batches_are_images_one_by_one(task: str) -> None:
    """Each image of a batch as the original says it alone, at sizes that need padding and several windows."""
    model = small(task)
    for size in SIZES:
        images = [image(*size, seed=seed) for seed in range(2)]
        batch = model.module(torch.stack(images).float())
        for index, single in enumerate(images):
            report = Report()
            compare(model.reference(single), {k: v[index : index + 1] for k, v in batch.items()}, report)
            assert report.agrees, report.__dict__


def test_anchors_are_detectron2s() -> None:
    generator = DefaultAnchorGenerator(sizes=[[8, 20]], aspect_ratios=[0.5, 1.0], strides=[4], offset=0.5)
    (wanted,) = generator([torch.zeros(1, 1, 5, 7)])
    assert torch.equal(anchors(next(iter(generator.cell_anchors)), 5, 7, 4, 0.5), wanted.tensor)


def test_masks_are_pasted_as_detectron2_does() -> None:
    """In boxes that leave the image, too; what is within a rounding of the threshold may fall either way."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(8, 14, 14, generator=generator)
    corner, size = (torch.rand(8, 2, generator=generator) for _ in range(2))
    boxes = torch.cat([60 * corner - 10, 60 * corner + 40 * size + 1], dim=1)
    probabilities = paste_masks(masks, boxes, (50, 70))
    wanted = paste_masks_in_image(masks, boxes, (50, 70))
    clear = (probabilities - 0.5).abs() > 1e-5
    assert torch.equal((probabilities >= 0.5)[clear], wanted[clear])
    assert clear.float().mean() > 0.999


def test_suppression() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30], [0, 0, 9, 10]])
    scores = torch.tensor([0.5, 0.9, 0.1, 0.7])
    assert suppressed(boxes, scores, 0.5).tolist() == pytest.approx([-torch.inf, 0.9, 0.1, -torch.inf])
    classes = torch.tensor([0, 0, 0, 1])
    assert suppressed_by_class(boxes, scores, classes, 0.5).tolist() == [1, 3, 2]
    assert suppressed_by_class(boxes[:0], scores[:0], classes[:0], 0.5).tolist() == []


@pytest.mark.parametrize("cells", [1, 2, 3, 6])
def test_pooling_as_matrix_products(cells: int) -> None:
    x = torch.randn(2, 3, 7, 10, dtype=torch.float64)
    pool = standard_operators()[torch.ops.aten.adaptive_avg_pool2d.default]
    torch.testing.assert_close(pool(x, (cells, cells)), F.adaptive_avg_pool2d(x, cells))


def test_comparison_sees_what_differs() -> None:
    """Order does not matter; a box 0.02 px away, a missing detection and another class do."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [5, 5, 30, 40], [50, 50, 60, 60]])
    original = {"boxes": boxes, "scores": torch.tensor([0.9, 0.8, 0.7]), "classes": torch.tensor([0, 1, 0])}
    order = [2, 0, 1]

    def differs(**changes: torch.Tensor) -> Report:
        report = Report()
        compare(original, {k: v[order] for k, v in {**original, **changes}.items()}, report)
        return report

    assert differs().agrees
    assert differs(boxes=boxes + 0.02).boxes == pytest.approx(0.02, abs=1e-5)
    assert not differs(boxes=boxes + 0.02).agrees
    assert differs(scores=original["scores"] + 2e-4).scores == pytest.approx(2e-4, rel=1e-2)
    assert differs(classes=torch.tensor([0, 2, 0])).unmatched == 2
    empty = boxes.clone()
    empty[1, 2] = empty[1, 0]  # without area: Detectron2 leaves it out
    assert differs(boxes=empty).unmatched == 1


def test_no_image_to_compare_with() -> None:
    model = small("classifier")
    with pytest.raises(ValueError, match="no image to compare on"):
        check(model, model.module, [])


def test_parts_that_cannot_be_exported_are_named() -> None:
    with pytest.raises(ExportError, match="the model is a Linear: expected a GeneralizedRCNN"):
        exportable(nn.Linear(2, 2))
    model = small_model("rcnn")
    model.roi_heads.keypoint_on = True
    with pytest.raises(ExportError, match=r"roi_heads.keypoint_head cannot be exported"):
        exportable(model)

    class OtherPooler(nn.Module):
        level_poolers = ()

    model = small_model("rcnn")
    model.roi_heads.box_pooler = OtherPooler()
    with pytest.raises(ExportError, match=r"roi_heads.box_pooler is a OtherPooler, .* expected a ROIPooler"):
        exportable(model)


def test_a_tracers_complaint_becomes_a_part_and_a_reason() -> None:
    """The innermost module on the stack is the part."""

    class Picky(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum().item() > 0 else -x

    model = nn.Sequential(nn.Identity(), nn.Sequential(Picky()))
    with pytest.raises(Exception) as raised:
        torch.export.export(model, (torch.ones(2),))
    message = str(blame(model, raised.value))
    assert message.startswith("1.0 (Picky) cannot be exported: ")
    assert "\n" not in message
    long = str(blame(model, RuntimeError("symbols not in [" + 999 * "Parameter(), " + "]\nmore")))
    assert long.startswith("Sequential cannot be exported: symbols not in [Parameter()")
    assert len(long) < 400 and long.endswith(" ...")
