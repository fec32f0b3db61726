"""Pooling of regions by the operator is RoIAlign."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.ops import RoIAlign

from piip.inference.pooling import SampledRoIAlign, sample_regions


def regions(number: int, images: int, side: float, seed: int) -> Tensor:
    """Anywhere, beyond the borders, empty and turned inside out, too."""
    generator = torch.Generator().manual_seed(seed)
    corners = (torch.rand(number, 4, generator=generator) * 1.6 - 0.3) * side
    ordered = torch.cat([torch.minimum(*corners.split(2, 1)), torch.maximum(*corners.split(2, 1))], 1)
    ordered[::7, 2:] = ordered[::7, :2]
    ordered[3::11] = ordered[3::11].roll(2, 1)
    return torch.cat([torch.randint(images, (number, 1), generator=generator), ordered], 1)


@settings(max_examples=25, deadline=None)
@given(
    output=st.sampled_from([(7, 7), (3, 5), (1, 1)]),
    scale=st.sampled_from([0.25, 0.0625]),
    ratio=st.sampled_from([0, 1, 2, 3]),
    aligned=st.booleans(),
    images=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_as_torchvision(
    output: tuple[int, int], scale: float, ratio: int, aligned: bool, images: int, seed: int
) -> None:
    """Up to the rounding of places: 1e-5 of a pixel between values a few apart."""
    boxes = regions(40, images, 200, seed)
    x = torch.randn(images, 5, 23, 31, generator=torch.Generator().manual_seed(seed))
    expected = RoIAlign(output, scale, ratio, aligned)(x, boxes)
    pool = SampledRoIAlign(output, scale, ratio, aligned)
    torch.testing.assert_close(pool(x, boxes), expected, rtol=1e-4, atol=1e-4)
    x = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(pool(x, boxes), expected, rtol=1e-4, atol=1e-4)


def test_no_region_and_half_precision() -> None:
    x, pool = torch.randn(1, 4, 9, 9), SampledRoIAlign(7, 0.5)
    assert pool(x, torch.zeros(0, 5)).shape == (0, 4, 7, 7)
    boxes = regions(20, 1, 16, 0)
    low = pool(x.bfloat16(), boxes)
    assert low.dtype == torch.bfloat16
    # one rounding of the values and one of the result, of eight bits
    torch.testing.assert_close(low.float(), pool(x, boxes), rtol=2**-7, atol=2**-7 * float(x.abs().max()))


def test_autocast_leaves_the_precision_of_the_map() -> None:
    x, pool, boxes = torch.randn(1, 4, 9, 9), SampledRoIAlign(7, 0.5), regions(20, 1, 16, 0)
    with torch.autocast("cpu", torch.bfloat16):
        inside = pool(x, boxes)
    assert torch.equal(inside, pool(x, boxes))


def test_replaces_those_of_a_model() -> None:
    model = nn.ModuleList([nn.ModuleList([RoIAlign((7, 7), 0.25, 0, True)]), nn.ReLU()])
    sample_regions(model)
    (pool,) = model[0]
    assert isinstance(pool, SampledRoIAlign)
    assert (pool.output_size, pool.spatial_scale, pool.sampling_ratio, pool.aligned) == (
        (7, 7),
        0.25,
        0,
        True,
    )
