"""Random inputs and comparisons shared by the operator's tests."""

import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Where the operators run: "cuda" tests the CUDA kernels, "emulated-cuda" does so without a GPU.
_WHERE = os.environ.get("PIIP_OPS_DEVICE", "cpu")
CUDA_KERNELS = _WHERE != "cpu"
DEVICE = torch.device("cpu" if _WHERE == "emulated-cuda" else _WHERE)
if _WHERE == "emulated-cuda":
    from .emulated_cuda import load_kernels

    load_kernels()
CHANNELS = [1, 3, 6, 8, 12, 16, 24, 32, 40, 100]


def cross_inputs(
    batch=2,
    query_shape=(5, 7),
    value_shape=(6, 4),
    heads=4,
    channels=6,
    points=4,
    dtype=torch.float64,
    seed=0,
) -> tuple[Tensor, Tensor, Tensor]:
    """value, offsets (2 px standard deviation: some fall outside) and logits."""
    random = torch.Generator().manual_seed(seed)
    queries, length = query_shape[0] * query_shape[1], value_shape[0] * value_shape[1]
    value = torch.randn(batch, length, heads, channels, generator=random, dtype=torch.float64)
    offsets = 2 * torch.randn(batch, queries, heads, points, 2, generator=random, dtype=torch.float64)
    logits = torch.randn(batch, queries, heads, points, generator=random, dtype=torch.float64)
    return value.to(DEVICE, dtype), offsets.to(DEVICE, dtype), logits.to(DEVICE, dtype)


def ms_inputs(
    batch=2,
    queries=11,
    shapes=((6, 4), (3, 2), (1, 1)),
    heads=3,
    channels=5,
    points=4,
    dtype=torch.float64,
    seed=0,
) -> tuple[Tensor, Tensor, Tensor]:
    """value, sampling locations in [-0.2, 1.2] and attention weights."""
    random = torch.Generator().manual_seed(seed)
    length = sum(height * width for height, width in shapes)
    value = torch.randn(batch, length, heads, channels, generator=random, dtype=torch.float64)
    locations = torch.rand(
        batch, queries, heads, len(shapes), points, 2, generator=random, dtype=torch.float64
    )
    weights = torch.rand(batch, queries, heads, len(shapes), points, generator=random, dtype=torch.float64)
    return value.to(DEVICE, dtype), (1.4 * locations - 0.2).to(DEVICE, dtype), weights.to(DEVICE, dtype)


def out_and_grads(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], rounded_to=torch.float64
) -> list[Tensor]:
    """The function's output and its gradients for a random cotangent that ``rounded_to`` can hold."""
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    out = function(*leaves)
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [out.detach(), *torch.autograd.grad(out, leaves, cotangent.to(rounded_to).to(out))]


def error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference, as a fraction of the largest expected value."""
    if expected.numel() == 0:
        return 0.0
    scale = expected.double().abs().max().clamp(min=1e-30)
    return float((actual.double() - expected.double()).abs().max() / scale)


# Float64 sums of CUDA's atomic additions, which come in any order; the CPU kernels add in one order.
REORDERING = 0.0 if DEVICE.type == "cpu" else 1e-12


def away_from_integers(positions: Tensor, margin: float) -> Tensor:
    """Positions moved at least ``margin`` away from pixel centres, where position gradients jump."""
    fraction = positions - positions.floor()
    return positions.floor() + fraction.clamp(margin, 1 - margin)
