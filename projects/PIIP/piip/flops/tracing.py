"""fvcore's operator counts of a model on the meta device, where neither weights nor activations take memory.

fvcore reads the operators out of a trace, and a trace of meta tensors goes wrong in two places: sizes read
from a tensor become tensors themselves, which shape functions written in Python refuse, and convolutions are
not recorded. The two modes here mend just that.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from fvcore.nn.jit_handles import get_shape
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import piip_ops

__all__ = ["OperatorCounts", "build_on_meta", "count_operators"]

# One operation an element and no multiply-add of its own; the published counters leave most of them out too.
_ELEMENTWISE = (
    "__mul__", "add", "add_", "alias", "arange", "avg_pool2d", "clone", "cos", "div", "div_", "embedding",
    "exp", "gelu", "lift_fresh", "max_pool2d", "mean", "meshgrid", "mul", "mul_", "neg", "new_ones", "pad",
    "pow", "repeat", "repeat_interleave", "rms_norm", "rsqrt", "rsub", "sigmoid", "silu", "sin", "softmax",
    "sqrt", "sub", "sum", "unflatten", "upsample_nearest2d",
)  # fmt: skip
ELEMENTWISE_NOTE = "elementwise operators (additions, products, softmax, GELU and the like)"


def _per_element(cost: int) -> Callable[[list[Any], list[Any]], int]:
    """A handler for operators that spend ``cost`` multiply-adds on each element of their output."""
    return lambda inputs, outputs: cost * prod(get_shape(outputs[0]))


def _attention(inputs: list[Any], outputs: list[Any]) -> int:
    """Both products of attention: query (..., N, d), key (..., M, d), value (..., M, e)."""
    *batch, queries, dim = get_shape(inputs[0])
    *_, keys, value_dim = get_shape(inputs[2])
    return prod(batch) * queries * keys * (dim + value_dim)


# fvcore's own guess for norms is 5 an element; 2, a scale and a shift, is what the published counters take.
_HANDLERS = {
    "aten::scaled_dot_product_attention": _attention,
    "aten::layer_norm": _per_element(2),
    "aten::group_norm": _per_element(2),
    "aten::upsample_bicubic2d": _per_element(16),
    "aten::_upsample_bicubic2d_aa": _per_element(16),
    "aten::upsample_linear1d": _per_element(2),
    **piip_ops.flop_handles(),
    **{f"aten::{name}": None for name in _ELEMENTWISE},
}


@dataclass(frozen=True)
class OperatorCounts:
    """What fvcore found.

    Attributes:
        macs: module name -> operator -> multiply-adds, without those of its submodules.
        unknown: operator -> how often one without a handler ran.
    """

    macs: Mapping[str, Mapping[str, float]]
    unknown: Mapping[str, int]

    def by_operator(self) -> Counter[str]:
        """Operator -> multiply-adds, of all modules."""
        total: Counter[str] = Counter()
        for counts in self.macs.values():
            total.update(counts)
        return total


def _pair(value: int | Sequence[int]) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    geometry = (_pair(stride), _pair(padding), _pair(dilation), False, (0, 0), groups)
    return torch._convolution(x, weight, bias, *geometry, False, False, False, False)


def _conv_transpose2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    geometry = (_pair(stride), _pair(padding), _pair(dilation), True, _pair(output_padding), groups)
    return torch._convolution(x, weight, bias, *geometry, False, False, False, False)


_RECORDED = {torch.conv2d: _conv2d, torch.conv_transpose2d: _conv_transpose2d}


class _PlainSizes(TorchFunctionMode):
    """Sizes are integers, and convolutions are called by the name under which a trace records them."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = _RECORDED.get(func, func)(*args, **(kwargs or {}))
        if isinstance(result, torch.Size):
            return torch.Size(int(size) for size in result)
        return int(result) if func is Tensor.size else result


class _ShapeOfConvolution(TorchDispatchMode):
    """Gives the result of a convolution its shape."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not torch.ops.aten._convolution.default:
            return func(*args, **(kwargs or {}))
        x, weight, _, stride, padding, dilation, transposed, output_padding, groups = args[:9]
        sizes = [int(size) for size in x.shape]
        kernel = [int(size) for size in weight.shape]
        shape = [sizes[0], kernel[1] * groups if transposed else kernel[0]]
        for i, size in enumerate(sizes[2:]):
            span = dilation[i] * (kernel[i + 2] - 1) + 1
            if transposed:
                shape.append((size - 1) * stride[i] - 2 * padding[i] + span + output_padding[i])
            else:
                shape.append((size + 2 * padding[i] - span) // stride[i] + 1)
        return x.new_empty(shape)


class _LinspaceHasValues(TorchFunctionMode):
    """Detectron2's and timm's models read drop path rates out of a linspace: that one needs values."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.linspace:
            kwargs.setdefault("device", "cpu")
        return func(*args, **kwargs)


@contextmanager
def build_on_meta() -> Iterator[None]:
    """Models built in this context live on the meta device: they have shapes and take no memory."""
    with torch.device("meta"), _LinspaceHasValues():
        yield


def count_operators(model: nn.Module, inputs: tuple[Tensor, ...]) -> OperatorCounts:
    """Count the multiply-adds of one forward pass with fvcore.

    Args:
        model: on the meta device, in evaluation mode; it returns a tensor or a tuple of tensors. What does
            not reach them is not part of the trace.
        inputs: its arguments, on the meta device.
    """
    analysis = FlopCountAnalysis(model, inputs)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    analysis.set_op_handle(**_HANDLERS)
    with torch.no_grad(), warnings.catch_warnings(), _PlainSizes(), _ShapeOfConvolution():
        warnings.filterwarnings("ignore", category=FutureWarning, message=".*torch.jit.*")
        nested = analysis.by_module_and_operator()
        unknown = analysis.unsupported_ops()
    own: dict[str, Counter[str]] = {name: Counter(counts) for name, counts in nested.items()}
    for name, counts in nested.items():
        if name:
            parent = name.rpartition(".")[0]
            while parent not in own:
                parent = parent.rpartition(".")[0]
            own[parent].subtract(counts)
    macs = {name: {op: float(macs) for op, macs in counts.items() if macs} for name, counts in own.items()}
    return OperatorCounts({name: counts for name, counts in macs.items() if counts}, dict(unknown))
