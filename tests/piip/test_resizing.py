"""Resizing of position embeddings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from piip.resizing import _by_sides, resize_bicubic

side = st.integers(1, 9)


@settings(deadline=None)
@given(side, side, side, side, side, st.sampled_from([torch.float32, torch.float64]))
def test_side_by_side_is_the_same(
    rows: int, columns: int, channels: int, height: int, width: int, dtype: torch.dtype
) -> None:
    """Bicubic weights are products of those of the sides: what a GPU computes is what a CPU does."""
    table = torch.randn(1, rows, columns, channels, dtype=dtype, requires_grad=True)
    image = table.permute(0, 3, 1, 2)
    expected = F.interpolate(image, size=(height, width), mode="bicubic", align_corners=False)
    # rounding of the sums of 16 terms
    tolerance = {"rtol": 0, "atol": 64 * torch.finfo(dtype).eps * float(table.detach().abs().max())}
    for resized in (_by_sides(table, height, width), resize_bicubic(table, height, width)):
        torch.testing.assert_close(resized, expected.permute(0, 2, 3, 1), **tolerance)
    weight = torch.randn(1, height, width, channels, dtype=dtype)
    of_sides = torch.autograd.grad((_by_sides(table, height, width) * weight).sum(), table)[0]
    at_once = torch.autograd.grad((expected.permute(0, 2, 3, 1) * weight).sum(), table)[0]
    scale = float(weight.abs().max()) * height * width  # as many terms may meet in an element
    torch.testing.assert_close(of_sides, at_once, rtol=0, atol=64 * torch.finfo(dtype).eps * scale)


def test_half_precision_is_resized_in_float32() -> None:
    table = torch.randn(1, 4, 4, 8, dtype=torch.bfloat16)
    assert torch.equal(resize_bicubic(table, 7, 6), resize_bicubic(table.float(), 7, 6).bfloat16())
