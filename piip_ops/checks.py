"""What the operators ask of their arguments (the compiled kernels ask the same, in csrc/checks.h)."""

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def as_integers(name: str, sizes: Sequence[Any]) -> list[int]:
    """The sizes as numbers: ``torch.jit.trace``, and with it fvcore, hands those of tensors on as tensors.

    Raises:
        ValueError: one is no integer, or has more than 31 bits.
    """
    if torch.compiler.is_compiling():  # symbolic sizes are numbers, and a question would bind them
        return list(sizes)
    try:
        integers: list[Any] = [
            size if isinstance(size, torch.SymInt) else operator.index(size) for size in sizes
        ]
    except TypeError:
        raise ValueError(f"{name}: expected integers, got {sizes}") from None
    if any(isinstance(size, int) and abs(size) >= 2**31 for size in integers):
        raise ValueError(f"{name}: expected integers below 2^31, got {sizes}")
    return integers


def as_levels(spatial_shapes: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """(height, width) of each level, as numbers.

    Raises:
        ValueError: a level has not two sizes, or one is no integer.
    """
    if any(len(shape) != 2 for shape in spatial_shapes):
        raise ValueError(f"spatial_shapes: expected (height, width) for every level, got {spatial_shapes}")
    flat = as_integers("spatial_shapes", [size for shape in spatial_shapes for size in shape])
    return list(zip(flat[::2], flat[1::2], strict=True))


def check_ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[Sequence[int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> None:
    """Raise ValueError, naming the argument, where :func:`piip_ops.ms_deform_attn` cannot take these."""
    _check_dims("value", value, "(B, S, heads, C)", 4)
    _check_dims("sampling_locations", sampling_locations, "(B, Q, heads, levels, points, 2)", 6)
    _check_dims("attention_weights", attention_weights, "(B, Q, heads, levels, points)", 5)
    batch, length, heads, _ = value.shape
    _check_sizes("spatial_shapes", [size for shape in spatial_shapes for size in shape], value.dtype)
    total = sum(height * width for height, width in spatial_shapes)
    if total != length:
        raise ValueError(
            f"spatial_shapes: these levels hold {total} positions, but value has {length} (its dim 1)"
        )
    queries, points = sampling_locations.shape[1], sampling_locations.shape[4]
    expected = (batch, queries, heads, len(spatial_shapes), points)
    _check_shape("sampling_locations", sampling_locations, (*expected, 2))
    _check_shape("attention_weights", attention_weights, expected)
    _check_kind(value, {"sampling_locations": sampling_locations, "attention_weights": attention_weights})


def check_deform_cross_attn(
    value: Tensor, offsets: Tensor, logits: Tensor, query_shape: Sequence[int], value_shape: Sequence[int]
) -> None:
    """Raise ValueError, naming the argument, where :func:`piip_ops.deform_cross_attn` cannot take these."""
    _check_dims("value", value, "(B, hv*wv, heads, C)", 4)
    _check_dims("offsets", offsets, "(B, hq*wq, heads, points, 2)", 5)
    _check_dims("logits", logits, "(B, hq*wq, heads, points)", 4)
    for name, shape in (("query_shape", query_shape), ("value_shape", value_shape)):
        if len(shape) != 2:
            raise ValueError(f"{name}: expected (height, width), got {len(shape)} numbers")
    batch, length, heads, _ = value.shape
    _check_sizes("value_shape", value_shape, value.dtype)
    if value_shape[0] * value_shape[1] != length:
        raise ValueError(
            f"value_shape: {value_shape[0]} x {value_shape[1]} positions, but value has {length} (its dim 1)"
        )
    if any(size < 0 for size in query_shape) or query_shape[0] * query_shape[1] != offsets.shape[1]:
        raise ValueError(
            f"query_shape: {query_shape[0]} x {query_shape[1]} queries, "
            f"but offsets has {offsets.shape[1]} (its dim 1)"
        )
    expected = (batch, offsets.shape[1], heads, offsets.shape[3])
    _check_shape("offsets", offsets, (*expected, 2))
    _check_shape("logits", logits, expected)
    _check_kind(value, {"offsets": offsets, "logits": logits})


def _check_dims(name: str, tensor: Tensor, layout: str, dims: int) -> None:
    if tensor.dim() != dims:
        raise ValueError(f"{name}: expected {dims} dimensions {layout}, got shape {tuple(tensor.shape)}")


def _check_shape(name: str, tensor: Tensor, expected: Sequence[int]) -> None:
    # Element by element: comparing tuples would look symbolic sizes up by identity first.
    if any(size != wanted for size, wanted in zip(tensor.shape, expected, strict=True)):
        raise ValueError(f"{name}: expected shape {tuple(expected)}, got {tuple(tensor.shape)}")


def _check_sizes(name: str, sizes: Sequence[int], dtype: torch.dtype) -> None:
    largest = 2**31 - 3 if dtype == torch.float64 else 2**24 - 1  # csrc/checks.h says why
    # One by one: the smallest of symbolic sizes would be a guard on which of them it is. Those have no upper
    # bound here, which would become one of an exported model's sizes: the kernels ask when they run.
    if len(sizes) == 0 or any(size < 1 or (isinstance(size, int) and size > largest) for size in sizes):
        raise ValueError(
            f"{name}: expected heights and widths of 1 to {largest} for {dtype}, got {list(sizes)}"
        )


def _check_kind(value: Tensor, others: dict[str, Tensor]) -> None:
    if value.dtype not in DTYPES:
        raise ValueError(f"value: expected float64, float32, bfloat16 or float16, got {value.dtype}")
    half_value = value.dtype in (torch.bfloat16, torch.float16)
    accepted = (value.dtype, torch.float32) if half_value else (value.dtype,)
    for name, other in others.items():
        if other.device != value.device:
            raise ValueError(f"{name}: on {other.device}, but value is on {value.device}; move one of them")
        if other.dtype not in accepted:
            raise ValueError(f"{name}: expected {' or '.join(map(str, accepted))}, got {other.dtype}")
    (first_name, first), (name, other) = others.items()
    if other.dtype != first.dtype:
        raise ValueError(f"{name}: expected the dtype of {first_name} ({first.dtype}), got {other.dtype}")
