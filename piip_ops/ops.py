"""The compiled operators, as PyTorch knows them: ``torch.ops.piip_ops``.

The extension brings the schemas, kernels and gradients (csrc/register.cpp); here they learn shape inference.
Where the extension is missing, or a device has no kernel, the reference computes the same.
"""

import warnings
from collections.abc import Sequence
from importlib import import_module

import torch
from torch import Tensor

from .checks import as_integers, as_levels, check_deform_cross_attn, check_ms_deform_attn
from .reference import deform_cross_attn_reference, ms_deform_attn_reference

try:
    import_module("piip_ops._C")  # registers the operators
except ImportError as error:
    _PROBLEM = str(error)
    _DEVICES: tuple[str, ...] = ()
    warnings.warn(
        f"piip_ops runs without its compiled operators, many times slower ({error}); "
        "to build them: pip install --no-build-isolation --force-reinstall --no-deps .",
        RuntimeWarning,
        stacklevel=3,
    )
else:
    _PROBLEM = ""
    # those with kernels; asked once, for the compiler cannot trace an operator that returns no tensor
    _DEVICES = ("cpu", "meta", "cuda") if torch.ops.piip_ops._built_with_cuda() else ("cpu", "meta")


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[Sequence[int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Multi-scale deformable attention (Deformable DETR, equation 3, without its linear layers).

    Samples are bilinear with zeros outside the map; a location ``l`` lies at pixel ``l * size - 0.5``.
    Positions and sums are float32 (float64 for float64 inputs). NaN and infinite locations sample zeros.

    Args:
        value: (B, S, heads, C) in float64, float32, bfloat16 or float16; the levels' maps flattened row by
            row and joined: S = sum of H * W.
        spatial_shapes: (H, W) of each level.
        sampling_locations: (B, Q, heads, levels, points, 2), (x, y) with 0 and 1 at the map's outer edges; in
            the dtype of ``value``, or float32 with a half-precision ``value``.
        attention_weights: (B, Q, heads, levels, points), in the dtype of ``sampling_locations``.

    Returns:
        (B, Q, heads * C) in the dtype of ``value``. Differentiable once.

    Raises:
        ValueError: a shape, dtype or device does not fit; the message names the argument.
    """
    if not _has_kernel(value):
        return ms_deform_attn_reference(value, spatial_shapes, sampling_locations, attention_weights)
    flat = [size for level in as_levels(spatial_shapes) for size in level]
    return torch.ops.piip_ops.ms_deform_attn(value, flat, sampling_locations, attention_weights)


def deform_cross_attn(
    value: Tensor, offsets: Tensor, logits: Tensor, query_shape: Sequence[int], value_shape: Sequence[int]
) -> Tensor:
    """Deformable attention of a grid of queries to one value map (PIIP, section 3.2, in the interactions).

    The reference point of a query is the centre of its cell, carried over to the value map; softmax runs over
    the points. Neither locations nor attention weights are ever written to memory. Rows of ``value``,
    ``offsets`` and ``logits`` may lie apart, as slices of a wider tensor do. NaN and infinite offsets sample
    zeros.

    Args:
        value: (B, hv * wv, heads, C) in float64, float32, bfloat16 or float16.
        offsets: (B, hq * wq, heads, points, 2), (x, y) in pixels of the value map; in the dtype of ``value``,
            or float32 with a half-precision ``value``.
        logits: (B, hq * wq, heads, points), in the dtype of ``offsets``.
        query_shape: (hq, wq).
        value_shape: (hv, wv).

    Returns:
        (B, hq * wq, heads * C) in the dtype of ``value``. Differentiable once.

    Raises:
        ValueError: a shape, dtype or device does not fit; the message names the argument.
    """
    if not _has_kernel(value):
        return deform_cross_attn_reference(value, offsets, logits, query_shape, value_shape)
    query_shape = as_integers("query_shape", query_shape)
    value_shape = as_integers("value_shape", value_shape)
    return torch.ops.piip_ops.deform_cross_attn(value, offsets, logits, query_shape, value_shape)


def build_info() -> dict[str, str]:
    """What was built and what will run: ``extension``, ``cpu`` and ``cuda``, a line each."""
    if not _DEVICES:
        reference = f"reference (no extension: {_PROBLEM})"
        return {"extension": "missing", "cpu": reference, "cuda": reference}
    return {
        "extension": "built",
        "cpu": f"{torch.ops.piip_ops._cpu_kernels()} kernels",
        "cuda": "kernels" if "cuda" in _DEVICES else "reference (built without CUDA)",
    }


def _has_kernel(value: Tensor) -> bool:
    return value.device.type in _DEVICES


def _pairs(flat: Sequence[int]) -> list[tuple[int, int]]:
    if len(flat) % 2:
        raise ValueError(f"spatial_shapes: expected (height, width) for every level, got {list(flat)}")
    return list(zip(flat[::2], flat[1::2], strict=True))


def _out_like(value: Tensor, queries: int) -> Tensor:
    batch, _, heads, channels = value.shape
    return value.new_empty(batch, queries, heads * channels)


def _like_contiguous(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in tensors)


def _ms_fake(value: Tensor, spatial_shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    check_ms_deform_attn(value, _pairs(spatial_shapes), locations, weights)
    return _out_like(value, locations.shape[1])


def _ms_backward_fake(
    grad: Tensor, value: Tensor, spatial_shapes: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, ...]:
    return _like_contiguous(value, locations, weights)


def _cross_fake(
    value: Tensor, offsets: Tensor, logits: Tensor, query_shape: Sequence[int], value_shape: Sequence[int]
) -> Tensor:
    check_deform_cross_attn(value, offsets, logits, query_shape, value_shape)
    return _out_like(value, offsets.shape[1])


def _cross_backward_fake(
    grad: Tensor,
    value: Tensor,
    offsets: Tensor,
    logits: Tensor,
    query_shape: Sequence[int],
    value_shape: Sequence[int],
) -> tuple[Tensor, ...]:
    return _like_contiguous(value, offsets, logits)


if _DEVICES:
    for _name, _fake in (
        ("ms_deform_attn", _ms_fake),
        ("ms_deform_attn_backward", _ms_backward_fake),
        ("deform_cross_attn", _cross_fake),
        ("deform_cross_attn_backward", _cross_backward_fake),
    ):
        torch.library.register_fake(f"piip_ops::{_name}", _fake)
