"""Other projects' deformable attention, replaced by this package's operator in one line.

    from piip_ops import adapters

    replaced = adapters.transformers(model)  # a Hugging Face model
    adapters.restore(replaced)  # back to what it was

Each function returns what it replaced. Results are those of the code that is replaced, up to rounding.
Shapes are
written B batch, S positions of all levels, Q queries, H heads, C channels per head, L levels, P points
per level."""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .ops import ms_deform_attn

__all__ = [
    "MSDeformAttnFunction",
    "Replaced",
    "deformable_detr",
    "extension",
    "mask2former",
    "mask_dino",
    "mmcv",
    "restore",
    "rf_detr",
    "transformers",
]

_MISSING = object()


class Replaced(NamedTuple):
    """An attribute that was replaced: its owner, its name, and the value that it had."""

    owner: Any
    name: str
    original: Any


def restore(replaced: Sequence[Replaced]) -> None:
    """Put everything back that an adapter replaced."""
    for owner, name, original in reversed(replaced):
        if owner is sys.modules:
            sys.modules.pop(name, None)
            if original is not _MISSING:
                sys.modules[name] = original
        elif original is _MISSING:
            delattr(owner, name)
        else:
            setattr(owner, name, original)


def transformers(model: nn.Module) -> list[Replaced]:
    """Use the operator in a Hugging Face model.

    It replaces the modules `MultiScaleDeformableAttention` of the model (Deformable DETR, RT-DETR,
    RF-DETR, LW-DETR,
    Grounding DINO, ...) and the functions `multi_scale_deformable_attention` and `..._v2` (Mask2Former,
    OneFormer,
    D-FINE, RT-DETRv2, ...). The functions belong to the file of the model's class, so other models of
    that class use the operator as well. The method "discrete" of `..._v2` stays as it is.

    Raises:
        ValueError: the model has no deformable attention of transformers.
    """
    replaced: list[Replaced] = []
    done: set[tuple[int, str]] = set()

    def once(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        if (id(owner), name) not in done:
            done.add((id(owner), name))
            replaced.extend(_replace(owner, name, make))

    for module in model.modules():
        kind = type(module)
        if not kind.__module__.startswith("transformers."):
            continue
        source = sys.modules[kind.__module__]
        if kind.__name__ == "MultiScaleDeformableAttention":
            once(module, "forward", lambda _: _attend_with_list)
        elif hasattr(module, "ms_deformable_attn_core"):
            once(module, "ms_deformable_attn_core", _attend_v2)
        elif hasattr(source, "multi_scale_deformable_attention"):
            once(source, "multi_scale_deformable_attention", lambda _: _attend)
        elif hasattr(source, "multi_scale_deformable_attention_v2"):
            once(source, "multi_scale_deformable_attention_v2", _attend_v2)
    if not replaced:
        raise ValueError(
            f"{type(model).__name__} has no deformable attention of transformers: expected a model such as "
            "DeformableDetrModel, RTDetrModel, DFineModel or Mask2FormerModel"
        )
    return replaced


def mmcv() -> list[Replaced]:
    """Use the operator in mmcv's `MultiScaleDeformableAttention`, on every device.

    Code that imported `MultiScaleDeformableAttnFunction` or `multi_scale_deformable_attn_pytorch` by
    name before this call keeps what it imported: call it first.

    Raises:
        ModuleNotFoundError: mmcv is not installed, or without its operators.
    """
    module = import_module("mmcv.ops.multi_scale_deform_attn")
    return [
        *_replace(module, "MultiScaleDeformableAttnFunction", lambda _: MSDeformAttnFunction),
        *_replace(module, "multi_scale_deformable_attn_pytorch", lambda _: _attend),
    ]


def deformable_detr(module: ModuleType) -> list[Replaced]:
    """Use the operator in a copy of Deformable DETR's `ops/modules/ms_deform_attn.py`.

    Args:
        module: that file as a module, imported; wherever its project keeps it. Where it cannot be
        imported because the CUDA extension was not built, call :func:`extension` before.

    Raises:
        ValueError: the module has no `MSDeformAttnFunction`.
    """
    if not hasattr(module, "MSDeformAttnFunction"):
        raise ValueError(f"{module.__name__} has no MSDeformAttnFunction: give the module that calls it")
    replaced = _replace(module, "MSDeformAttnFunction", lambda _: MSDeformAttnFunction)
    if hasattr(module, "ms_deform_attn_core_pytorch"):
        replaced += _replace(module, "ms_deform_attn_core_pytorch", lambda _: _attend)
    return replaced


def mask2former() -> list[Replaced]:
    """Use the operator in Detectron2's Mask2Former, with or without its CUDA extension.

    Raises:
        ModuleNotFoundError: the package `mask2former` cannot be imported.
    """
    return _detectron2_project("mask2former.modeling.pixel_decoder.ops.modules.ms_deform_attn")


def mask_dino() -> list[Replaced]:
    """Use the operator in MaskDINO, with or without its CUDA extension.

    Raises:
        ModuleNotFoundError: the package `maskdino` cannot be imported.
    """
    return _detectron2_project("maskdino.modeling.pixel_decoder.ops.modules.ms_deform_attn")


def rf_detr() -> list[Replaced]:
    """Use the operator in RF-DETR.

    Raises:
        ModuleNotFoundError: `rfdetr` is not installed.
    """
    module = import_module("rfdetr.models.ops.modules.ms_deform_attn")
    return _replace(module, "ms_deform_attn_core_pytorch", lambda _: _attend_channels_before_positions)


def extension() -> list[Replaced]:
    """Stand in for `MultiScaleDeformableAttention`, the CUDA extension that Deformable DETR and its
    descendants build.

    Call it before they are imported: they then run without that extension, on a CPU as well.
    """
    module = ModuleType("MultiScaleDeformableAttention")
    vars(module).update(
        ms_deform_attn_forward=_extension_forward, ms_deform_attn_backward=_extension_backward
    )
    original = sys.modules.get(module.__name__, _MISSING)
    sys.modules[module.__name__] = module
    return [Replaced(sys.modules, module.__name__, original)]


class MSDeformAttnFunction:
    """Has the `apply` of Deformable DETR's `MSDeformAttnFunction` and mmcv's
    `MultiScaleDeformableAttnFunction`."""

    @staticmethod
    def apply(
        value: Tensor,
        value_spatial_shapes: Tensor,
        value_level_start_index: Tensor,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int = 64,
    ) -> Tensor:
        """(B, Q, H * C) of value (B, S, H, C), locations (B, Q, H, L, P, 2) and weights (B, Q, H, L, P).

        The start of each level follows from the shapes, and the operator needs no `im2col_step`: both
        are ignored."""
        return _attend(value, value_spatial_shapes, sampling_locations, attention_weights)


def _replace(owner: Any, name: str, make: Callable[[Any], Any]) -> list[Replaced]:
    """Replace an attribute by what `make` makes of it."""
    original = getattr(owner, name)
    own = vars(owner).get(name, _MISSING)  # an instance may have it from its class
    setattr(owner, name, make(original))
    return [Replaced(owner, name, own)]


def _detectron2_project(name: str) -> list[Replaced]:
    installed = []
    if "MultiScaleDeformableAttention" not in sys.modules:
        try:
            import_module("MultiScaleDeformableAttention")
        except ImportError:
            installed = extension()
    return [*installed, *deformable_detr(import_module(name))]


def _attend(
    value: Tensor,
    value_spatial_shapes: Tensor | Sequence[Sequence[int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    shapes = (
        value_spatial_shapes.tolist() if isinstance(value_spatial_shapes, Tensor) else value_spatial_shapes
    )
    kinds = {sampling_locations.dtype, attention_weights.dtype}
    half = value.dtype in (torch.bfloat16, torch.float16)
    dtype = torch.float32 if half and kinds != {value.dtype} else value.dtype
    return ms_deform_attn(value, shapes, sampling_locations.to(dtype), attention_weights.to(dtype))


def _attend_with_list(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_spatial_shapes_list: Sequence[Sequence[int]],
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    return _attend(value, value_spatial_shapes_list, sampling_locations, attention_weights)


def _attend_v2(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Levels may have different numbers of points: locations are (B, Q, H, sum of points, 2)."""

    def attend(
        value: Tensor,
        value_spatial_shapes: Tensor | Sequence[Sequence[int]],
        sampling_locations: Tensor,
        attention_weights: Tensor,
        num_points_list: Sequence[int],
        method: str = "default",
    ) -> Tensor:
        if method != "default":
            return original(
                value, value_spatial_shapes, sampling_locations, attention_weights, num_points_list, method
            )
        shapes = [(int(height), int(width)) for height, width in value_spatial_shapes]
        if len(set(num_points_list)) == 1:
            levels = (len(shapes), num_points_list[0])
            return _attend(
                value, shapes, sampling_locations.unflatten(3, levels), attention_weights.unflatten(3, levels)
            )
        values = value.split([height * width for height, width in shapes], dim=1)
        locations = sampling_locations.split(list(num_points_list), dim=3)
        weights = attention_weights.split(list(num_points_list), dim=3)
        parts = [
            _attend(v, [shape], x.unsqueeze(3), w.unsqueeze(3))
            for v, shape, x, w in zip(values, shapes, locations, weights, strict=True)
        ]
        return torch.stack(parts).sum(0)

    return attend


def _attend_channels_before_positions(
    value: Tensor,
    value_spatial_shapes: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    value_spatial_shapes_hw: Sequence[tuple[int, int]] | None = None,
) -> Tensor:
    """RF-DETR's layout: value (B, H, C, S), weights (B, Q, H, L * P); locations may have L * P in one
    axis, too."""
    shapes = value_spatial_shapes.tolist() if value_spatial_shapes_hw is None else value_spatial_shapes_hw
    levels = (len(shapes), attention_weights.shape[3] // len(shapes))
    if sampling_locations.dim() == 5:
        sampling_locations = sampling_locations.unflatten(3, levels)
    return _attend(
        value.permute(0, 3, 1, 2), shapes, sampling_locations, attention_weights.unflatten(3, levels)
    )


def _extension_forward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    return _attend(value, spatial_shapes, sampling_locations, attention_weights)


def _extension_backward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    im2col_step: int,
) -> tuple[Tensor, ...]:
    with torch.enable_grad():
        inputs = [x.detach().requires_grad_() for x in (value, sampling_locations, attention_weights)]
        output = _attend(inputs[0], spatial_shapes, inputs[1], inputs[2])
        return torch.autograd.grad(output, inputs, grad_output)
