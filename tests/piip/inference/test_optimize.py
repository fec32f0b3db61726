"""A model optimised for inference says what it said before."""

from __future__ import annotations

import copy
import resource
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import piip
from piip import InteractionConfig, optimize_for_inference
from piip.folding import compose, scale_output
from piip.inference.norms import HalfPrecisionNorm, half_precision_norms
from piip.inference.packed import PackedLinear
from piip.neck import PyramidBackbone, published_pyramid

from ..models import DIMS, KINDS, randomise, tiny_piip

# Factors are folded in float64 and rounded once; sums of a few hundred terms are taken in another order.
FLOAT32 = 2e-5


def close(actual: Tensor, expected: Tensor, tolerance: float) -> bool:
    return float((actual - expected).abs().max()) <= tolerance * float(expected.abs().max())


@pytest.mark.parametrize("name", KINDS)
def test_same_map(name: str) -> None:
    model = randomise(KINDS[name]().eval())
    x = torch.randn(1, 3, 96, 96)
    with torch.inference_mode():
        expected = model(x)
    optimised = optimize_for_inference(model)
    assert optimised is model
    actual = model(x)
    assert close(actual, expected, FLOAT32)
    assert not actual.requires_grad
    assert not any(type(module) is nn.Linear for module in model.modules())
    assert not any(module.training for module in model.modules())  # else no graph is recorded on a GPU


def test_negative_weights_of_the_merge_stay() -> None:
    """ReLU lets no negative factor through: folding one would change the map."""
    model = randomise(tiny_piip().eval())
    with torch.no_grad():
        for weight, value in zip(model.merge.weights.values(), (-0.7, 0.0, 1.3), strict=True):
            weight.fill_(value)
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected = model(x)
    assert close(optimize_for_inference(model)(x), expected, FLOAT32)
    assert list(model.merge.weights) == ["1"]


def test_folding_twice_changes_nothing() -> None:
    model = randomise(tiny_piip().eval())
    foldable = [module for module in model.modules() if hasattr(module, "fold")]
    for module in foldable:
        module.fold()
    state = copy.deepcopy(model.state_dict())
    for module in foldable:
        module.fold()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert not [key for key in state if "gamma" in key or key.startswith("merge.weights")]


@settings(deadline=None, max_examples=20)
@given(
    st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.booleans(), st.booleans(), st.integers(1, 3)
)
def test_composed_deconvolution(
    dim: int, between: int, out: int, bias: bool, other: bool, kernel: int
) -> None:
    deconvolution = nn.ConvTranspose2d(dim, between, kernel, stride=kernel, bias=bias).double()
    pointwise = nn.Conv2d(between, out, 1, bias=other).double()
    x = torch.randn(2, dim, 3, 4, dtype=torch.float64)
    joined = compose(deconvolution, pointwise)
    assert (joined.bias is not None) == (bias or other)
    torch.testing.assert_close(joined(x), pointwise(deconvolution(x)))


def test_scaled_output() -> None:
    for layer, shape in ((nn.Linear(4, 3), (2, 4)), (nn.GroupNorm(1, 3), (2, 3, 5, 5))):
        x, factor = torch.randn(shape), torch.tensor([0.5, -2.0, 4.0])  # powers of two: exact
        expected = layer(x) * (factor if layer(x).ndim == 2 else factor[:, None, None])
        scale_output(layer, factor)
        torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_packed_linear_with_gelu(approximate: str) -> None:
    linear, gelu = nn.Linear(24, 40), nn.GELU(approximate)
    x = torch.randn(2, 3, 7, 24)
    packed = PackedLinear(linear, gelu)
    torch.testing.assert_close(packed(x), gelu(linear(x)).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_packed_linear(bias: bool) -> None:
    linear = nn.Linear(24, 40, bias=bias)
    packed = PackedLinear(linear)
    assert torch.equal(packed.weight, linear.weight)
    for shape in ((5, 24), (2, 3, 7, 24), (0, 24), (1, 24)):
        x = torch.randn(shape)
        # float32 rounding of a sum of 24 terms in another order
        torch.testing.assert_close(packed(x), linear(x).detach(), rtol=1e-5, atol=1e-5)
    cut = torch.randn(3, 9, 24)[:, 2:7]  # not contiguous
    torch.testing.assert_close(packed(cut), linear(cut).detach(), rtol=1e-5, atol=1e-5)
    assert "in" not in packed.state_dict() and "weight" not in packed.state_dict()


@pytest.mark.parametrize("precision", ["float32", "autocast"])
def test_bfloat16_keeps_what_the_method_computes_in_float32(precision: Any) -> None:
    """All of deformable attention as released, where it looks otherwise."""
    model = randomise(
        tiny_piip(interaction=InteractionConfig(num_heads=4, attention_precision=precision)).eval()
    )
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected = model(x)
    optimize_for_inference(model, torch.bfloat16)
    types = {name: parameter.dtype for name, parameter in model.named_parameters()}
    assert types["branches.0.patch_embed.proj.weight"] == torch.bfloat16
    attention = model.interactions[0].units["1_2"].large_to_small.attn
    wide = {"float32": torch.float32, "autocast": torch.bfloat16}[precision]
    value = attention.value_proj  # packed, where the CPU has instructions for it
    assert (value.dtype if isinstance(value, PackedLinear) else value.weight.dtype) == wide
    assert attention.sampling_offsets.dtype == attention.attention_weights.dtype == torch.float32
    # 8 bits of mantissa through two stages
    assert close(model(x).float(), expected, 5e-2)


def test_narrow_norm() -> None:
    """As in float32, rounded once; in another type than the weights' as the norm itself."""
    norm = nn.LayerNorm(24)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.add_(torch.randn(24)).copy_(parameter.bfloat16())
    x = torch.randn(5, 24).bfloat16()
    expected = norm(x.float())
    narrow = HalfPrecisionNorm(norm.bfloat16())
    assert narrow(x).dtype == torch.bfloat16
    torch.testing.assert_close(narrow(x).float(), expected, rtol=2**-7, atol=1e-5)  # 8 bits
    norm.float()
    assert torch.equal(narrow(x.float()), expected)


@pytest.mark.parametrize("name", KINDS)
def test_half_precision_norms(name: str) -> None:
    """Those of blocks and of feed-forward layers; what deformable attention looks at stays wide."""
    model = KINDS[name]().eval()
    half_precision_norms(model)
    narrow = {
        path.rpartition(".")[2]
        for path, module in model.named_modules()
        if isinstance(module, HalfPrecisionNorm)
    }
    blocks = set() if name == "convnext" else {"norm1", "norm2"}
    assert narrow == blocks | (set() if name.startswith("no ffn") else {"ffn_norm"})


def test_released_pyramid() -> None:
    """The levels of a released backbone, merged map included."""
    inner = tiny_piip()
    model = randomise(PyramidBackbone(inner, published_pyramid(inner)).eval())
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected = model(x)
    actual = optimize_for_inference(model)(x)
    assert actual.keys() == expected.keys()
    assert all(close(actual[key], expected[key], FLOAT32) for key in expected)
    assert DIMS[0] == actual["merged"].shape[1]


def test_classifier_and_half_optimised_models() -> None:
    classifier = randomise(piip.create_model("piip_b_512_256_128", num_classes=5).eval())
    with pytest.raises(ValueError, match=r"dtype torch\.float16 is not supported: use torch\.float32"):
        optimize_for_inference(classifier, torch.float16)
    optimize_for_inference(classifier)
    with pytest.raises(ValueError, match="optimise a model only once"):
        optimize_for_inference(classifier)


@pytest.mark.parametrize(("name", "side"), [("piip_b_512_256_128", 512), ("piip_tsb_368_192_128.in1k", 368)])
def test_logits_of_a_lowered_classifier_are_in_float32(name: str, side: int) -> None:
    classifier = piip.create_model(name, num_classes=5).eval()
    x = torch.randn(1, 3, side, side)
    assert optimize_for_inference(classifier, torch.bfloat16)(x).dtype == torch.float32


_FAULTS = """
import resource
import torch
from piip.inference.heap import keep_heap_warm
assert keep_heap_warm()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(64 << 20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(min(faults() for _ in range(12)))
"""


def test_memory_stays() -> None:
    """A large tensor's pages are there when the next one comes: filling it fetches none.

    The first few fetch theirs, until what else is allocated has found its place; otherwise all do. In a
    process of its own, whose heap no other test has shaped.
    """
    done = subprocess.run([sys.executable, "-c", _FAULTS], capture_output=True, text=True, check=True)
    assert int(done.stdout) < (64 << 20) // resource.getpagesize() // 10
