"""Linear layers in oneDNN: the same numbers, parameters and names."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lab.onednn import OneDNNLinear, use_onednn_linear

from ..piip.models import randomise, tiny_piip


@settings(deadline=None, max_examples=20)
@given(
    st.integers(1, 2), st.integers(1, 7), st.integers(1, 7), st.integers(1, 40), st.booleans(), st.booleans()
)
def test_same_as_linear(batch: int, height: int, width: int, dim: int, bias: bool, cropped: bool) -> None:
    linear = nn.Linear(dim, 24, bias=bias)
    ours = use_onednn_linear(nn.Sequential(linear))[0]
    assert type(ours) is OneDNNLinear and ours.weight is linear.weight and ours.bias is linear.bias
    x = torch.randn(batch, height + 2, width + 2, dim)
    x = x[:, 1:-1, 1:-1] if cropped else x
    expected, actual = linear(x), ours(x)
    assert actual.shape == expected.shape
    # float32 rounding of a sum of up to 40 terms in another order
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    gradient = torch.randn_like(expected)
    for a, e in zip(
        torch.autograd.grad(actual, tuple(ours.parameters()), gradient),
        torch.autograd.grad(expected, tuple(linear.parameters()), gradient),
        strict=True,
    ):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_whole_model() -> None:
    piip = randomise(tiny_piip(branch={"window_sizes": 3}).eval())
    x = torch.randn(1, 3, 64, 80)
    expected, state = piip(x), {name: tensor.data_ptr() for name, tensor in piip.state_dict().items()}
    assert use_onednn_linear(piip) is piip
    assert not any(type(module) is nn.Linear for module in piip.modules())
    assert {name: tensor.data_ptr() for name, tensor in piip.state_dict().items()} == state
    # float32 rounding through two stages
    torch.testing.assert_close(piip(x), expected, rtol=1e-4, atol=1e-4 * expected.abs().max())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(piip(x)).all()
    assert torch.isfinite(piip.double()(x.double())).all()
