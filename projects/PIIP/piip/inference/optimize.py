"""`optimize_for_inference`: one call for all optimisations."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from ..backbone import PIIP
from ..branches.attention import TokenMapAttention, attention_by_products
from ..cross_attention import DeformableCrossAttention
from ..folding import Foldable
from .graphs import replay_maps
from .heap import keep_heap_warm
from .norms import half_precision_norms
from .packed import pack_linears
from .pooling import sample_regions

__all__ = ["optimize_for_inference"]

Model = TypeVar("Model", bound=nn.Module)
_DTYPES = (torch.float32, torch.bfloat16)


def optimize_for_inference(model: Model, dtype: torch.dtype = torch.float32) -> Model:
    """Make a trained model faster, for inference only.

    What can be multiplied into weights is (layer scales, gammas of interactions, scalars of the merge, 1x1
    convolutions after deconvolutions); convolutions become channels-last, which is how token maps lie in
    memory. On a CPU linear layers get packed weights and, with AVX-512, apply the GELU that follows; regions
    are pooled by the attention operator; and the process keeps the memory of tensors that are gone. On a GPU
    what PIIPs compute is replayed from CUDA graphs (:func:`piip.inference.graphs.replay_maps`). In float32
    results stay within 1e-4 of a map's largest value.

    Args:
        model: any model of this package, trained and loaded. It is changed in place: its state dict is no
            longer that of a checkpoint, and it cannot be trained.
        dtype: float32, or bfloat16 for the parts that bear it: weights of PIIPs, linear layers and
            convolutions are kept in it and everything runs under autocast, so what the method computes in
            float32 remains so; a model that is built with ``attention_precision="autocast"`` computes less in
            float32. On processors without instructions for it bfloat16 is slower than float32.

    Returns:
        The model, in evaluation mode; calling it records no gradients.

    Raises:
        ValueError: another dtype, or the model was optimised already.
    """
    if dtype not in _DTYPES:
        raise ValueError(f"dtype {dtype} is not supported: use torch.float32 or torch.bfloat16")
    if "forward" in vars(model):
        raise ValueError("the model's forward was replaced already: optimise a model only once")
    model.requires_grad_(False)
    for module in list(model.modules()):
        if isinstance(module, Foldable):
            module.fold()
    if dtype != torch.float32:
        _lower_layers(model, dtype)
    model.to(memory_format=torch.channels_last)
    devices = {parameter.device.type for parameter in model.parameters()}
    if "cpu" in devices:
        if dtype != torch.float32 and not torch.cpu._is_amx_tile_supported():
            _attend_by_products(model)
        pack_linears(model)
        sample_regions(model)
        keep_heap_warm()
    if "cuda" in devices:
        if dtype != torch.float32:
            half_precision_norms(model)
        replay_maps(model)
    model.eval()  # what was put in place, too
    vars(model)["forward"] = _without_gradients(model.forward, dtype, devices)
    return model


def _lower_layers(model: nn.Module, dtype: torch.dtype) -> None:
    """Keep the weights of PIIPs, and those of linear layers and convolutions elsewhere, in ``dtype``.

    Autocast would round the latter at every call, and packed layers compute in what they were packed in.
    Those of a module with a true attribute ``stays_float32`` remain as they are, and so do the layers that
    put out a detector's scores and boxes: 8 bits tell too few scores apart.
    """
    kept: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, PIIP):
            _lower_piip(module, dtype)
        # by name: Detectron2 is not needed here
        puts_out = type(module).__name__ == "FastRCNNOutputLayers"
        if isinstance(module, PIIP) or puts_out or getattr(module, "stays_float32", False):
            kept.update(module.modules())
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d) and module not in kept:
            for parameter in module.parameters(recurse=False):  # Detectron2's convolutions have norms inside
                parameter.data = parameter.data.to(dtype)


def _lower_piip(piip: PIIP, dtype: torch.dtype) -> None:
    """Keep a PIIP's weights in ``dtype``, but for what deformable attention computes in float32."""
    wide: set[nn.Parameter] = set()
    for module in piip.modules():
        if isinstance(module, DeformableCrossAttention):
            places = (module.sampling_offsets, module.attention_weights)
            for part in (module,) if module.precision == "float32" else places:
                wide.update(part.parameters())
    for parameter in piip.parameters():
        if parameter not in wide:
            parameter.data = parameter.data.to(dtype)


def _attend_by_products(model: nn.Module) -> None:
    """Attention in windows as two products, which half precision makes faster."""
    for module in model.modules():
        if isinstance(module, TokenMapAttention) and module.window_size is not None:
            module.product = attention_by_products


def _without_gradients(
    forward: Callable[..., Any], dtype: torch.dtype, devices: set[str]
) -> Callable[..., Any]:
    device = next(iter(devices), "cpu")

    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        with torch.inference_mode(), torch.autocast(device, dtype, enabled=dtype != torch.float32):
            return forward(*args, **kwargs)

    return run
