"""Segmentation heads and inference in windows compute what the published code computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from piip.official import build_segmentation_heads
from piip.segmentation import slide_inference
from piip.segmentation.inference import windows

from ...shared_data import Golden, golden


def case() -> Golden:
    return golden("fixtures/segmentation", "upernet_tiny")


def heads() -> Any:
    model = build_segmentation_heads(case().meta).double()
    state = {k: v.double() if v.is_floating_point() else v for k, v in case().group("state").items()}
    model.load_state_dict(state)
    return model


def maps() -> list[Tensor]:
    return [case().arrays[f"input/f{i}"].double() for i in range(1, 5)]


def close(value: Tensor, key: str) -> bool:
    """To 1e-6 of the largest value, as the golden data state for float64."""
    reference = case().arrays[key].double()
    assert value.shape == reference.shape
    return bool((value - reference).abs().max() <= 1e-6 * max(1.0, float(reference.abs().max())))


def test_golden_logits() -> None:
    with torch.no_grad():
        logits, auxiliary = heads().eval()(maps())
    assert close(logits, "eval/logits")
    assert close(auxiliary, "eval/auxiliary_logits")


def test_golden_losses_and_gradients() -> None:
    """Batch norm on the batch, dropout off; ignored pixels count in the mean."""
    model, inputs = heads().train(), [x.requires_grad_() for x in maps()]
    for module in model.modules():
        if isinstance(module, nn.Dropout2d):
            module.eval()
    losses = model.losses(inputs, case().arrays["train/labels"])
    assert close(losses.main, "train/loss")
    assert close(losses.auxiliary, "train/auxiliary_loss")
    (losses.main + losses.auxiliary).backward()
    parameters = dict(model.named_parameters())
    for key in case().group("train/grad"):
        source = inputs[int(key[1]) - 1] if key in ("f1", "f2", "f3", "f4") else parameters[key]
        assert source.grad is not None
        assert close(source.grad, f"train/grad/{key}"), key


def network(image: Tensor) -> Tensor:
    """The heads on the stub backbone that the golden data describe."""
    channels = (12, 16, 20, 24)
    factors = [torch.arange(number) // 3 + 1 for number in channels]
    stub = [
        F.avg_pool2d(image, size)[:, torch.arange(number) % 3] * factor.double()[:, None, None]
        for size, number, factor in zip((4, 8, 16, 32), channels, factors, strict=True)
    ]
    logits, _ = heads().eval()(stub)
    return logits


@pytest.mark.parametrize("max_windows", [1, 3, 100])
def test_golden_slide(max_windows: int) -> None:
    """Whatever the number of windows at a time."""
    meta, image = case().meta, case().arrays["image"].double()
    with torch.no_grad():
        crop, stride = tuple(meta["crop_size"]), tuple(meta["stride"])
        logits = slide_inference(network, image, crop, stride, max_windows=max_windows)
        assert logits.shape == (1, 9, 150, 97)
        enlarged = F.interpolate(logits, size=meta["original_size"], mode="bilinear", align_corners=False)
    assert close(enlarged, "slide/logits")
    assert torch.equal(enlarged.argmax(1).short(), case().arrays["slide/classes"])


def test_golden_whole() -> None:
    """One window as large as the image."""
    image = case().arrays["image"].double()
    with torch.no_grad():
        logits = slide_inference(network, image, (150, 97), (150, 97))
        size = case().meta["original_size"]
        enlarged = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    assert close(enlarged, "whole/logits")


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 40), st.integers(1, 40), st.data())
def test_windows_cover_the_image(height: int, width: int, crop: int, other: int, data: st.DataObject) -> None:
    """Every pixel, by windows of one size inside the image, or of the image's where that is smaller."""
    stride = (data.draw(st.integers(1, crop)), data.draw(st.integers(1, other)))
    seen = torch.zeros(height, width)
    for top, left, bottom, right in windows(height, width, (crop, other), stride):
        assert (bottom - top, right - left) == (min(crop, height), min(other, width))
        assert 0 <= top < bottom <= height and 0 <= left < right <= width
        seen[top:bottom, left:right] += 1
    assert seen.min() >= 1


def test_a_network_without_context_is_not_changed_by_windows() -> None:
    image = torch.randn(2, 3, 37, 53)
    result = slide_inference(lambda x: x * 2, image, 16, (7, 11))
    torch.testing.assert_close(result, image * 2)
    assert slide_inference(lambda x: x.bfloat16(), image, 16, 16).dtype == torch.float32


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="leaves gaps"):
        windows(10, 10, 4, 5)
    with pytest.raises(ValueError, match="positive"):
        windows(10, 10, 0, 0)
    labels = torch.full((2, 64, 96), 9)
    with pytest.raises(ValueError, match=r"labels hold 9 .*expected 0 to 8, or 255"):
        heads().losses(maps(), labels)
