"""The model computes what the published code computes, from the same weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from piip.official import build_backbone, convert_backbone

from ... import require
from ...shared_data import Golden, golden, names

FOLDER = "fixtures/backbone"
CASES = names(FOLDER) or ["a_piip3_deform"]  # one that skips where the data is absent

# float64: arithmetic is exact to 1e-12, but the golden arrays are stored as float32 (6e-8 of the largest
# value). float32: rounding through up to 24 layers; the published code itself differs from its float64 run by
# 1e-4.
TOLERANCE = {torch.float64: 2e-6, torch.float32: 3e-4}


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    expected = expected.double()
    error = (actual.double() - expected).abs().max().item()
    assert error <= tolerance * max(1.0, expected.abs().max().item()), f"{what}: off by {error}"


def build(case: Golden, dtype: torch.dtype) -> torch.nn.Module:
    model = build_backbone(case.meta["backbone_config"])
    model.load_state_dict(convert_backbone(case.group("state")), strict=True)
    return model.to(dtype).eval()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_outputs(name: str, dtype: torch.dtype) -> None:
    case = golden(FOLDER, name)
    with torch.inference_mode():
        outputs = build(case, dtype)(case.arrays["input"].to(dtype))
    expected = case.group("out")
    expected.pop("fpn3_input", None)  # the third tapped map, which is f3
    for key, value in expected.items():
        assert_close(outputs[key], value, TOLERANCE[dtype], key)
    assert set(outputs) - set(expected) <= {"merged"}  # the baseline's "merged" is its f3


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("j_")])
def test_every_step(name: str) -> None:
    """Resized images, maps after the position embedding and after every stage, and merge inputs."""
    case = golden(FOLDER, name)
    steps = case.group("mid")
    piip = build(case, torch.float64).piip
    with torch.inference_mode():
        images = piip.image_pyramid(case.arrays["input"].double())
        for j, image in enumerate(images, start=1):
            if f"resized_image/branch{j}" in steps:
                assert_close(image, steps[f"resized_image/branch{j}"], 2e-6, f"image {j}")
        maps = piip.embed(images)
        for j, x in enumerate(maps, start=1):
            assert_close(x.flatten(1, 2), steps[f"tokens_in/branch{j}"], 2e-6, f"tokens {j}")
        for stage in range(piip.num_stages):
            maps, _ = piip.run_stage(stage, maps)
            for j, x in enumerate(maps, start=1):
                assert_close(
                    x.flatten(1, 2), steps[f"interaction{stage}/branch{j}"], 2e-6, f"stage {stage}, {j}"
                )
        for j, x in enumerate(maps, start=1):
            transformed = piip.merge.transforms[str(j)](x.permute(0, 3, 1, 2))
            assert_close(transformed, steps[f"merge/branch{j}"], 2e-6, f"merge {j}")


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("grad_checkpointing", [False, True])
def test_gradients(dtype: torch.dtype, grad_checkpointing: bool) -> None:
    case = golden(FOLDER, "a2_piip3_deform_grads")
    model = build(case, dtype)
    for drop_path in (m for m in model.modules() if type(m).__name__ == "DropPath"):
        drop_path.drop_prob = 0.0  # so that train mode, which checkpointing needs, computes the same
    model.train()
    model.piip.set_grad_checkpointing(grad_checkpointing)
    image = case.arrays["input"].to(dtype, copy=True).requires_grad_()
    outputs = model(image)
    gradients = case.group("grad")
    sum((outputs[f"f{i}"] * gradients[f"cotangent_f{i}"].to(dtype)).sum() for i in range(1, 5)).backward()

    assert_close(image.grad, gradients["input"], TOLERANCE[dtype], "input")
    expected = {k.removeprefix("param/"): v for k, v in gradients.items() if k.startswith("param/")}
    ours = dict(model.named_parameters())
    name_of = dict(zip(case.group("state"), convert_backbone(case.group("state")), strict=True))
    assert expected
    for published, value in expected.items():
        assert_close(ours[name_of[published]].grad, value, TOLERANCE[dtype], published)
    for published, norm in case.meta["grad_norms"].items():
        actual = ours[name_of[published]].grad.double().norm().item()
        assert actual == pytest.approx(norm, rel=10 * TOLERANCE[dtype], abs=TOLERANCE[dtype]), published


def test_published_fpn() -> None:
    """The neck, on maps of 28, 14, 7 and 3 rows: the top-down path has to enlarge 3 to 7."""
    require.detectron2()
    from piip.engine.backbone import piip_backbone

    case = golden(FOLDER, "a4_piip3_deform_neck")
    published = build(case, torch.float64)
    fpn = piip_backbone(
        published.piip, neck="released", out_channels=case.meta["neck"]["out_channels"]
    ).double()
    fpn.bottom_up.pyramid = published.pyramid
    for key, value in case.group("neck_state").items():
        kind, level, _, parameter = key.split(".")  # lateral_convs.0.conv.weight
        conv = getattr(
            fpn, f"fpn_{ {'lateral_convs': 'lateral', 'fpn_convs': 'output'}[kind] }{int(level) + 2}"
        )
        getattr(conv, parameter).data.copy_(value)
    with torch.inference_mode():
        levels = fpn.eval()(case.arrays["input"].double())
    for key, value in case.group("neck").items():
        assert_close(levels[key], value, 2e-6, key)
