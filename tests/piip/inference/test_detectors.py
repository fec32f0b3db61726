"""Whole detectors and segmentors, optimised, find what they found before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ... import require
from ..models import randomise, tiny_piip

require.detectron2()

from piip import optimize_for_inference
from piip.engine.backbone import ReleasedFPN, SimplePyramid, piip_backbone
from piip.inference.packed import PackedLinear
from piip.measure.cost import load_detector


def quick(name: str) -> Any:
    torch.manual_seed(0)
    model: Any = load_detector(f"configs/quick/{name}_piip_128_96_64_shapes.py").eval()
    randomise(model.backbone)
    return model


def tensors(output: dict[str, Any]) -> dict[str, Tensor]:
    if "sem_seg" in output:
        return output
    fields = output["instances"].get_fields()
    return {name: getattr(value, "tensor", value).float() for name, value in fields.items()}


@pytest.mark.parametrize("name", ["mask_rcnn", "dino", "upernet"])
def test_same_predictions(name: str) -> None:
    model = quick(name)
    image = torch.randint(0, 256, (3, 128, 112), dtype=torch.uint8)
    inputs = [{"image": image, "height": 128, "width": 112}]
    with torch.inference_mode():
        expected = tensors(model(inputs)[0])
    actual = tensors(optimize_for_inference(model)(inputs)[0])
    assert any(isinstance(module, PackedLinear) for module in model.modules())
    assert actual.keys() == expected.keys()
    if "scores" in expected:  # of random weights many scores are nearly the same: their order is free
        found, wanted = (torch.stack([t["scores"], t["pred_classes"]], 1) for t in (actual, expected))
        distance = torch.cdist(
            torch.cat([found, actual["pred_boxes"]], 1),
            torch.cat([wanted, expected["pred_boxes"]], 1),
            p=float("inf"),
        )
        # float32 rounding, in pixels for boxes; the last ones may not make it into the 100
        assert float(distance.amin(0)[:50].amax()) < 1e-3
    else:
        torch.testing.assert_close(actual["sem_seg"], expected["sem_seg"], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("neck", ["released", "simple"])
def test_neck_is_folded(neck: str) -> None:
    """Lateral convolutions after a deconvolution are gone, the levels stay; folding twice does no harm."""
    backbone = randomise(piip_backbone(tiny_piip(), neck=neck, out_channels=16).eval())  # type: ignore[arg-type]
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected = backbone(x)
    before = sum(p.numel() for p in backbone.parameters())
    assert isinstance(backbone, ReleasedFPN | SimplePyramid)
    backbone.fold()
    backbone.fold()
    assert sum(p.numel() for p in backbone.parameters()) < before
    with torch.inference_mode():
        actual = backbone(x)
    for level, value in expected.items():
        # products of weights are rounded once, sums of some hundred terms taken in another order
        torch.testing.assert_close(actual[level], value, rtol=1e-4, atol=2e-5 * float(value.abs().max()))


def test_bfloat16_of_heads() -> None:
    """Layers of heads compute in bfloat16, as under autocast; those of scores and DINO's in float32."""
    model = optimize_for_inference(quick("mask_rcnn"), torch.bfloat16)
    heads = model.roi_heads
    types = {module.dtype for module in heads.box_head.modules() if isinstance(module, PackedLinear)}
    # not packed where the CPU has no instructions for bfloat16
    assert types <= {torch.bfloat16}
    scores = [module for module in heads.box_predictor.modules() if isinstance(module, PackedLinear)]
    assert scores and {module.dtype for module in scores} == {torch.float32}
    assert {parameter.dtype for parameter in heads.mask_head.parameters()} == {torch.bfloat16}
    dino = optimize_for_inference(quick("dino"), torch.bfloat16)
    kept = [module for module in dino.head.modules() if isinstance(module, PackedLinear)]
    assert kept and {module.dtype for module in kept} == {torch.float32}
    assert {parameter.dtype for parameter in dino.head.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["mask_rcnn", "upernet"])
def test_bfloat16_is_what_autocast_makes_of_it(name: str) -> None:
    """Weights rounded once are those that autocast rounds at every call."""
    model, twin = quick(name), quick(name)
    image = torch.randint(0, 256, (3, 128, 112), dtype=torch.uint8)
    inputs = [{"image": image, "height": 128, "width": 112}]
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        expected = tensors(twin(inputs)[0])
    actual = tensors(optimize_for_inference(model, torch.bfloat16)(inputs)[0])
    if name == "upernet":
        error = float((actual["sem_seg"].float() - expected["sem_seg"].float()).norm())
        assert error < 0.05 * float(expected["sem_seg"].float().norm())  # 8 bits through two dozen layers
    else:  # the best box; of random weights many are nearly as good
        assert abs(float(actual["scores"][0] - expected["scores"][0])) < 0.05
