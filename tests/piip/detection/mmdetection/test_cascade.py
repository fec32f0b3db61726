"""Cascade Mask R-CNN by mmdetection's rules, beside Detectron2's."""

from __future__ import annotations

import runpy
from typing import Any

import pytest
import torch

from .... import require

require.detectron2()

from detectron2.config import LazyConfig, instantiate
from detectron2.modeling.roi_heads import CascadeROIHeads
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor

from piip.detection.mmdetection.cascade import ReleasedCascadeROIHeads

from ...tiny_config import REPOSITORY

use_cascade = runpy.run_path(str(REPOSITORY / "configs/common/cascade.py"))["use_cascade"]
SIZE = (128, 128)
OBJECTS = torch.tensor([[10.0, 10, 50, 50], [40, 60, 100, 120]])


@pytest.fixture(scope="module")
def heads() -> tuple[CascadeROIHeads, ReleasedCascadeROIHeads]:
    """Detectron2's and mmdetection's, with the same weights; all proposals are samples."""
    cfg = LazyConfig.load(str(REPOSITORY / "configs/quick/cascade_mask_rcnn_piip_128_96_64_shapes.py"))
    cfg.model.roi_heads.batch_size_per_image, cfg.model.roi_heads.positive_fraction = 64, 0.5
    theirs = instantiate(cfg.model.roi_heads)
    use_cascade(cfg.model, "mmdetection")
    ours = instantiate(cfg.model.roi_heads)
    assert isinstance(ours, ReleasedCascadeROIHeads)
    state = {name: tensor for name, tensor in theirs.state_dict().items() if "mask_head" not in name}
    masks = theirs.mask_head.state_dict()
    state |= {f"mask_head.{i}.{name}": tensor for i in range(3) for name, tensor in masks.items()}
    ours.load_state_dict(state)
    return theirs, ours


def features() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(1, 48, side, side, generator=generator).requires_grad_()
        for name, side in (("p2", 32), ("p3", 16))
    }


def proposals() -> list[Instances]:
    corners = torch.rand(20, 2, 2, generator=torch.Generator().manual_seed(1)).sort(dim=1).values.flatten(1)
    boxes = torch.cat([128 * corners, OBJECTS + 3])
    return [Instances(SIZE, proposal_boxes=Boxes(boxes), objectness_logits=torch.zeros(len(boxes)))]


def truth() -> list[Instances]:
    masks = torch.zeros(2, *SIZE, dtype=torch.bool)
    masks[0, 10:50, 10:50] = masks[1, 60:120, 40:100] = True
    return [
        Instances(SIZE, gt_boxes=Boxes(OBJECTS), gt_classes=torch.tensor([0, 1]), gt_masks=BitMasks(masks))
    ]


def learned(part: CascadeROIHeads, maps: dict[str, Tensor]) -> dict[str, Tensor]:
    with EventStorage():
        losses: dict[str, Tensor] = part.train()(None, maps, proposals(), truth())[1]
    return losses


def test_losses_of_the_first_stage(heads: tuple[CascadeROIHeads, ReleasedCascadeROIHeads]) -> None:
    """As Detectron2's, but the maps get the whole gradient, not a third; and a mask loss a stage."""
    gradients = []
    for part in heads:
        maps = features()
        losses = learned(part, maps)
        losses["loss_cls_stage0"].backward()
        gradients.append((losses["loss_cls_stage0"].item(), maps["p2"].grad))
    (loss, third), (again, whole) = gradients
    assert again == pytest.approx(loss, rel=1e-5)  # float32, samples in another order
    torch.testing.assert_close(whole, 3 * third, rtol=1e-4, atol=1e-7)
    kinds = ("loss_cls", "loss_box_reg", "loss_mask")
    assert losses.keys() == {f"{kind}_stage{stage}" for kind in kinds for stage in range(3)}


def test_weights_of_the_stages(heads: tuple[CascadeROIHeads, ReleasedCascadeROIHeads]) -> None:
    _, ours = heads
    weighted = learned(ours, features())
    assert tuple(ours.stage_weights) == (1, 0.5, 0.25)
    ours.stage_weights = (1, 1, 1)
    try:
        plain = learned(ours, features())
    finally:
        ours.stage_weights = (1, 0.5, 0.25)
    for name, loss in weighted.items():
        assert loss.item() == pytest.approx(plain[name].item() * 0.5 ** int(name[-1]), rel=1e-6)


def test_a_stage_hands_on_what_it_found(heads: tuple[CascadeROIHeads, ReleasedCascadeROIHeads]) -> None:
    """All boxes but those of the objects, which join each stage anew."""
    with EventStorage():
        (left,), _ = heads[1].train()(None, features(), proposals(), truth())
    assert len(left) == len(proposals()[0])


@torch.no_grad()
def test_detections(heads: tuple[CascadeROIHeads, ReleasedCascadeROIHeads]) -> None:
    """Scores are the softmax of the mean of the stages' logits, masks the mean of three heads."""
    theirs, ours = heads
    for stage, predictor in enumerate(ours.box_predictor):
        predictor.cls_score.weight.zero_()
        predictor.cls_score.bias.copy_(torch.arange(7.0) * (stage - 0.5))
    (found,) = ours.eval()(None, features(), proposals())[0]
    expected = (torch.arange(7.0) * 0.5).softmax(0)
    for score, kind in zip(found.scores, found.pred_classes, strict=True):
        assert score.item() == pytest.approx(expected[kind].item(), rel=1e-5)
    masks = found.pred_masks.clone()
    theirs.eval().forward_with_given_boxes(features(), [found])  # one head with the weights of all three
    torch.testing.assert_close(masks, found.pred_masks)


def test_every_stage_learns_from_images_without_objects(
    heads: tuple[CascadeROIHeads, ReleasedCascadeROIHeads],
) -> None:
    empty = [Instances(SIZE, gt_boxes=Boxes(torch.zeros(0, 4)), gt_classes=torch.zeros(0, dtype=torch.int64))]
    with EventStorage():
        losses: dict[str, Any] = heads[1].train()(None, features(), proposals(), empty)[1]
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["loss_mask_stage2"] == losses["loss_box_reg_stage2"] == 0
