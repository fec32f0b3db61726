"""The operators compute what the published code computed, and what their reference computes."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from piip_ops import deform_cross_attn, deform_cross_attn_reference, ms_deform_attn, ms_deform_attn_reference

from .cases import (
    CHANNELS,
    CUDA_KERNELS,
    DEVICE,
    REORDERING,
    away_from_integers,
    cross_inputs,
    error,
    ms_inputs,
    out_and_grads,
)

FIXTURES = sorted(Path(__file__).parent.joinpath("fixtures").glob("*.npz"))
# Of the largest value. Half precision: one rounding of the result (2^-8 and 2^-11); all before it happens
# in float32, whose own bound is added. Float32: 24 bits of a position.
TOLERANCE = {
    torch.float64: 1e-10,
    torch.float32: 1e-5,
    torch.bfloat16: 2**-8 + 1e-5,
    torch.float16: 2**-11 + 1e-5,
}


LEVELS = (ms_deform_attn, ms_deform_attn_reference)
CROSS = (deform_cross_attn, deform_cross_attn_reference)


def _cross(function, query_shape, value_shape, *inputs):
    return function(*inputs, query_shape, value_shape)


def _levels(function, shapes, value, *inputs):
    return function(value, shapes, *inputs)


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
@pytest.mark.parametrize("function", [ms_deform_attn, ms_deform_attn_reference])
def test_published_numbers(path, function):
    data = {name: torch.from_numpy(array).to(DEVICE) for name, array in np.load(path).items()}
    names = ("value", "sampling_locations", "attention_weights")
    leaves = [data[name].requires_grad_() for name in names]
    out = function(leaves[0], data["spatial_shapes"].tolist(), *leaves[1:])
    grads = torch.autograd.grad(out, leaves, data["grad_output"])
    torch.testing.assert_close(out, data["output"], rtol=0, atol=1e-10)
    for name, grad in zip(names, grads, strict=True):
        torch.testing.assert_close(grad, data[f"grad_{name}"], rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("heads", "points"), [(4, 4), (16, 4), (5, 3), (6, 8)])
@pytest.mark.parametrize("channels", CHANNELS)
def test_cross_matches_float64_reference(channels, heads, points, dtype):
    shapes = {"query_shape": (5, 7), "value_shape": (6, 4)}
    inputs = cross_inputs(heads=heads, channels=channels, points=points, dtype=dtype, **shapes)
    actual = out_and_grads(lambda *x: deform_cross_attn(*x, **shapes), inputs)
    expected = out_and_grads(
        lambda *x: deform_cross_attn_reference(*x, **shapes), [t.double() for t in inputs], rounded_to=dtype
    )
    # rounding to a grid puts half-precision offsets exactly on pixel centres, where both choose the same side
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == dtype
        assert error(a, e) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shapes", [[(6, 4)], [(1, 1)], [(6, 4), (3, 2), (1, 1)], [(2, 9)] * 4])
@pytest.mark.parametrize("channels", [3, 12, 32, 40])
def test_levels_match_float64_reference(channels, shapes, dtype):
    value, locations, weights = ms_inputs(shapes=shapes, channels=channels, heads=8)
    sizes = torch.tensor(shapes, device=DEVICE).flip(1).view(-1, 1, 2)
    locations = (away_from_integers(locations * sizes - 0.5, 1e-4) + 0.5) / sizes
    # positions in half precision would be a different computation: they stay in float32
    half = dtype in (torch.bfloat16, torch.float16)
    wide = torch.float32 if half else dtype
    inputs = [value.to(dtype), locations.to(wide), weights.to(wide)]
    actual = out_and_grads(lambda v, *x: ms_deform_attn(v, shapes, *x), inputs)
    expected = out_and_grads(
        lambda v, *x: ms_deform_attn_reference(v, shapes, *x), [t.double() for t in inputs], rounded_to=dtype
    )
    for a, e in zip(actual, expected, strict=True):
        assert error(a, e) < TOLERANCE[dtype]


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(0, 3),
    query_shape=st.tuples(st.integers(0, 6), st.integers(1, 6)),
    value_shape=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    heads=st.integers(1, 9),
    channels=st.integers(1, 37),
    points=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_any_shape(batch, query_shape, value_shape, heads, channels, points, seed):
    inputs = cross_inputs(batch, query_shape, value_shape, heads, channels, points, seed=seed)
    actual = out_and_grads(lambda *x: deform_cross_attn(*x, query_shape, value_shape), inputs)
    expected = out_and_grads(lambda *x: deform_cross_attn_reference(*x, query_shape, value_shape), inputs)
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        assert error(a, e) < 1e-10


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(0, 2),
    queries=st.integers(0, 19),
    shapes=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=5),
    heads=st.integers(1, 9),
    channels=st.integers(1, 37),
    points=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_any_levels(batch, queries, shapes, heads, channels, points, seed):
    inputs = ms_inputs(batch, queries, shapes, heads, channels, points, seed=seed)
    actual = out_and_grads(lambda v, *x: ms_deform_attn(v, shapes, *x), inputs)
    expected = out_and_grads(lambda v, *x: ms_deform_attn_reference(v, shapes, *x), inputs)
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        assert error(a, e) < 1e-10


@pytest.mark.parametrize("channels", CHANNELS)
def test_gradcheck(channels):
    query_shape, value_shape = (3, 1), (3, 2)
    value, offsets, logits = cross_inputs(1, query_shape, value_shape, heads=2, channels=channels, points=2)
    scale = torch.tensor([value_shape[1] / query_shape[1], value_shape[0] / query_shape[0]], device=DEVICE)
    cells = torch.tensor([[0.5, i + 0.5] for i in range(3)], device=DEVICE).view(1, 3, 1, 1, 2) * scale - 0.5
    offsets = away_from_integers(cells + offsets, 1e-2) - cells
    inputs = [t.double().requires_grad_() for t in (value, offsets, logits)]
    torch.autograd.gradcheck(
        lambda *x: deform_cross_attn(*x, query_shape, value_shape), inputs, nondet_tol=REORDERING
    )


@pytest.mark.parametrize("position", [-3.0, -1.0, -0.5, 0.0, 3.0, 3.5, 4.0, 9.0, 1e30, -1e30])
def test_borders(position):
    """On a map of ones the output is the share of the pixel square around a position that covers the map."""
    value = torch.ones(1, 4, 1, 3, dtype=torch.float64, device=DEVICE)
    location = value.new_tensor([(position + 0.5) / 4, 0.5]).view(1, 1, 1, 1, 1, 2)
    out = ms_deform_attn(value, [(1, 4)], location, value.new_ones(1, 1, 1, 1, 1))
    share = max(0.0, min(1.0, position + 1, 4 - position))
    torch.testing.assert_close(out, torch.full_like(out, share))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30, -1e30])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_bad_positions_sample_zeros_and_leave_the_rest_alone(bad, dtype):
    shapes = {"query_shape": (4, 5), "value_shape": (6, 4)}
    value, offsets, logits = cross_inputs(dtype=dtype, **shapes)
    clean = out_and_grads(lambda *x: deform_cross_attn(*x, **shapes), (value, offsets, logits))
    spoiled_offsets = offsets.clone()
    spoiled_offsets[:, 7] = bad
    spoiled = out_and_grads(lambda *x: deform_cross_attn(*x, **shapes), (value, spoiled_offsets, logits))
    others = [i for i in range(20) if i != 7]
    for index in (0, 2, 3):
        torch.testing.assert_close(spoiled[index][:, others], clean[index][:, others], rtol=0, atol=0)
    assert not spoiled[0][:, 7].any()
    assert spoiled[1].isfinite().all()


def _with_holes(tensor: torch.Tensor, share: float, bad: Sequence[float] = (float("nan"),)) -> torch.Tensor:
    """The tensor with that share of its numbers replaced by ``bad`` ones."""
    random = torch.Generator().manual_seed(tensor.numel())
    holes = torch.rand(tensor.shape, generator=random) < share
    filling = torch.tensor(bad, dtype=tensor.dtype)[torch.randint(len(bad), tensor.shape, generator=random)]
    return torch.where(holes.to(DEVICE), filling.to(DEVICE), tensor)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("spoiled", ["value", "points", "mixing", "cotangent", "all"])
@pytest.mark.parametrize("cross", [True, False])
def test_nan_is_where_the_reference_has_it(cross, spoiled, dtype):
    """Outside the map lie zeros: a border cell of NaN, or infinity, is not seen from there."""
    shapes, queries = ((4, 5),) if cross else ((4, 5), (1, 3), (2, 1)), (5, 7)
    if cross:
        inputs = cross_inputs(query_shape=queries, value_shape=shapes[0], heads=6, channels=20)
        functions = [partial(_cross, function, queries, shapes[0]) for function in CROSS]
    else:
        inputs = ms_inputs(shapes=shapes, heads=6, channels=20)
        functions = [partial(_levels, function, shapes) for function in LEVELS]
    nan, infinity = float("nan"), float("inf")
    value, points, mixing = inputs
    if spoiled in ("value", "all"):
        value = _with_holes(value, 0.02, (nan, infinity, -infinity))
    if spoiled in ("points", "all"):
        points = _with_holes(points, 0.1, (nan, infinity, -infinity, 1e30))
    if spoiled in ("mixing", "all"):
        mixing = _with_holes(mixing, 0.02)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    inputs = [value.to(dtype), points.to(wide), mixing.to(wide)]
    results = []
    for function in functions:
        leaves = [t.clone().requires_grad_() for t in inputs]
        out = function(*leaves)
        cotangent = torch.ones_like(out)
        if spoiled in ("cotangent", "all"):
            cotangent = _with_holes(cotangent, 0.02)
        results.append([out.detach(), *torch.autograd.grad(out, leaves, cotangent)])
    for actual, expected in zip(*results, strict=True):
        assert torch.equal(actual.isnan(), expected.isnan())
        assert torch.equal(actual.isinf(), expected.isinf())
        finite = expected.isfinite()
        assert error(actual[finite], expected[finite]) < TOLERANCE[dtype]


def test_a_border_cell_of_nan_is_not_seen_from_outside():
    value = torch.ones(1, 4, 1, 3, dtype=torch.float64, device=DEVICE)
    value[0, 1] = float("nan")
    location = value.new_tensor([[0.4 / 4, 0.5], [-3.0, 0.5]]).view(1, 2, 1, 1, 1, 2)  # at -0.1, and far away
    out = ms_deform_attn(value, [(1, 4)], location, value.new_ones(1, 2, 1, 1, 1))
    torch.testing.assert_close(out, torch.tensor([0.9, 0.0]).to(value).view(1, 2, 1).expand(1, 2, 3))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("channels", [1, 3, 6, 12, 24, 100])
def test_heads_do_not_touch_each_other(channels, dtype):
    """Vectors that are wider than a head read, and in the backward pass write, nothing of its neighbours."""
    shapes = {"query_shape": (4, 5), "value_shape": (6, 4)}
    value, offsets, logits = cross_inputs(heads=6, channels=channels, dtype=dtype, **shapes)
    clean = out_and_grads(lambda *x: deform_cross_attn(*x, **shapes), (value, offsets, logits))
    spoiled_value, spoiled_logits = value.clone(), logits.clone()
    spoiled_value[:, :, [1, 4]] = float("nan")
    spoiled_logits[:, :, [1, 4]] = float("nan")
    spoiled = out_and_grads(
        lambda *x: deform_cross_attn(*x, **shapes), (spoiled_value, offsets, spoiled_logits)
    )
    others = [0, 2, 3, 5]
    for a, b in zip(spoiled, clean, strict=True):
        a, b = (t.unflatten(2, (6, -1))[:, :, others] if t.dim() == 3 else t[:, :, others] for t in (a, b))
        # CUDA's atomic additions come in any order: one rounding of the type
        assert error(a, b) <= (0 if DEVICE.type == "cpu" else TOLERANCE[dtype])


def test_more_than_2_31_elements():
    """Offsets are 64 bits wide: the last row of a map of 2.2 * 10^9 channels. Few pages are touched."""
    side, channels = 2048, 520
    value = torch.empty(1, side * side, 1, channels, dtype=torch.bfloat16, device=DEVICE)
    value[:, -side - 2 :] = 0
    value[:, -1] = torch.arange(channels) % 128
    location = torch.full((1, 1, 1, 1, 1, 2), (side - 0.5) / side, device=DEVICE)
    out = ms_deform_attn(value, [(side, side)], location, torch.ones(1, 1, 1, 1, 1, device=DEVICE))
    assert value.numel() > 2**31 and torch.equal(out, value[:, -1].flatten(1).unsqueeze(1))


@pytest.mark.skipif(not CUDA_KERNELS, reason="about the CUDA kernels")
def test_cuda_limits():
    value, offsets, logits = cross_inputs(points=33)
    with pytest.raises(ValueError, match="offsets: the CUDA kernel takes up to 32 points, got 33"):
        deform_cross_attn(value, offsets, logits, (5, 7), (6, 4))
    shapes = [(1, 1)] * 17
    value, locations, weights = ms_inputs(shapes=shapes)
    with pytest.raises(ValueError, match="spatial_shapes: the CUDA kernel takes up to 16 levels, got 17"):
        ms_deform_attn(value, shapes, locations, weights)


@pytest.mark.skipif(DEVICE.type != "cpu", reason="about threads of the CPU")
@pytest.mark.parametrize("heads", [16, 6, 1])
def test_threads_do_not_change_the_result(heads):
    shapes = {"query_shape": (9, 8), "value_shape": (7, 7)}
    inputs = cross_inputs(heads=heads, dtype=torch.float32, **shapes)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 32):  # 32: in two passes, but for 16 heads
            torch.set_num_threads(count)
            results.append(out_and_grads(lambda *x: deform_cross_attn(*x, **shapes), inputs))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


def _in_place(views, query_shape, value_shape):
    """As ``out_and_grads``, without the copies that would make the views contiguous."""
    leaves = [view.requires_grad_() for view in views]
    out = deform_cross_attn(*leaves, query_shape, value_shape)
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [out.detach(), *torch.autograd.grad(out, leaves, cotangent.to(DEVICE))]


def test_strided_and_expanded_inputs():
    query_shape, value_shape = (5, 7), (6, 4)
    value, offsets, logits = cross_inputs(heads=4, channels=6)
    joined = torch.cat([value.flatten(2), offsets.flatten(2).new_zeros(2, 24, 5)], -1)
    both = torch.cat([offsets.flatten(2), logits.flatten(2)], -1)
    views = [
        joined[..., :24].view(2, 24, 4, 6),
        both[..., :32].view(2, 35, 4, 4, 2),
        both[..., 32:].view(2, 35, 4, 4),
    ]
    assert not any(view.is_contiguous() for view in views)
    expected = out_and_grads(lambda *x: deform_cross_attn_reference(*x, query_shape, value_shape), views)
    leaves = [view.requires_grad_() for view in views]
    out = deform_cross_attn(*leaves, query_shape, value_shape)
    assert error(out.detach(), expected[0]) < 1e-10
    expanded = [
        value[:1].expand(2, -1, -1, -1),
        offsets[:, :1].expand(-1, 35, -1, -1, -1),
        logits.mT.contiguous().mT,
    ]
    actual = deform_cross_attn(*expanded, query_shape, value_shape)
    reference = deform_cross_attn_reference(*expanded, query_shape, value_shape)
    assert error(actual, reference) < 1e-10


def test_cotangent_may_be_expanded():
    inputs = [t.requires_grad_() for t in cross_inputs()]
    out = deform_cross_attn(*inputs, (5, 7), (6, 4))
    expected = torch.autograd.grad(out, inputs, torch.ones_like(out), retain_graph=True)
    for a, e in zip(torch.autograd.grad(out.sum(), inputs), expected, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=REORDERING)
