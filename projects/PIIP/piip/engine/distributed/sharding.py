"""PyTorch's FSDP2 on a detector: what is a group, in which precision it travels, how its weights get there.

Groups, each gathered in one piece when its forward begins: every block of every branch; the interactions of a
stage; every head. What is left (patch and position embeddings, merge, neck) belongs to the model itself and
stays gathered from forward to backward. Blocks and interactions of a bfloat16 training travel and compute in
bfloat16; what FSDP keeps, reduces and hands to the optimizer is float32. All else travels in float32 and runs
under autocast, as without sharding.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from detectron2.config import instantiate
from detectron2.utils.registry import locate
from omegaconf import DictConfig, ListConfig
from timm.layers import LayerScale
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from ...backbone import PIIP
from ...branches import Branch, TimmBranch
from ...weights.differences import check_values
from ...weights.pretrained import fit_branch, read_source, timm_state
from ..compilation import SharedDropPath, own_checkpointing

__all__ = [
    "build_for_sharding",
    "fill",
    "is_sharded",
    "load_pretrained_parts",
    "materialise",
    "scalar_names",
    "shard",
    "unsharded",
]

_logger = logging.getLogger("detectron2.piip")


def is_sharded(model: nn.Module) -> bool:
    """Whether :func:`shard` was applied to a model."""
    return isinstance(model, FSDPModule)


def _on_meta(*, family: Any, **options: Any) -> Branch:
    """A branch without weights."""
    with torch.device("meta"):
        branch: Branch = _located(family)(**options)
    return branch


def _located(target: Any) -> Any:
    return locate(target) if isinstance(target, str) else target


def _branches_on_meta(node: DictConfig | ListConfig, *, pretrained_only: bool) -> None:
    """Let the branches in a config be built on the meta device."""
    for child in node if isinstance(node, ListConfig) else [node[key] for key in node]:
        if isinstance(child, DictConfig | ListConfig):
            _branches_on_meta(child, pretrained_only=pretrained_only)
    if isinstance(node, DictConfig) and "_target_" in node:
        target = _located(node["_target_"])
        is_branch = isinstance(target, type) and issubclass(target, Branch)
        if is_branch and not (pretrained_only and node.get("pretrained") is None):
            node["family"], node["_target_"] = node["_target_"], _on_meta


def build_for_sharding(cfg: DictConfig, *, weights_follow: bool = False) -> nn.Module:
    """The config's model on the CPU, but for branches whose weights a file gives: those take no memory.

    Args:
        cfg: a config.
        weights_follow: all weights come from a checkpoint; otherwise those of pretrained branches do.
    """
    model_cfg = cfg.model.copy()
    _branches_on_meta(model_cfg, pretrained_only=not weights_follow)
    model: nn.Module = instantiate(model_cfg)
    return model


def scalar_names(model: nn.Module) -> list[str]:
    """Names of a sharded model's parameters that are 0-dimensional elsewhere."""
    return list(getattr(model, "_scalars", []))


def _lengthen_scalars(model: nn.Module) -> None:
    """Make 0-dimensional parameters, which FSDP cannot shard, vectors of one number."""
    names = [name for name, parameter in model.named_parameters() if parameter.ndim == 0]
    for name in names:
        path, _, last = name.rpartition(".")
        module = model.get_submodule(path)
        parameter = getattr(module, last)
        setattr(module, last, nn.Parameter(parameter.detach().reshape(1), parameter.requires_grad))
    model._scalars = names  # type: ignore[assignment]


def shard(model: nn.Module, device: torch.device, precision: str) -> nn.Module:
    """Shard a model over all processes, in place, see the module.

    Args:
        model: with one PIIP inside, compiled or not.
        device: of the processes, "cpu" or "cuda".
        precision: of training.

    Returns:
        The model.

    Raises:
        ValueError: there is no process group.
    """
    if not dist.is_initialized():
        raise ValueError("train.parallel='fsdp' shards over processes, and there is one: start with torchrun")
    mesh = dist.device_mesh.init_device_mesh(device.type, (dist.get_world_size(),))
    own_checkpointing(model)
    _lengthen_scalars(model)
    # inputs are left alone: between blocks the maps stay as autocast has them without sharding
    half = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    full = MixedPrecisionPolicy(cast_forward_inputs=False)
    inner = half if precision == "bfloat16" else full
    for piip in [module for module in model.modules() if isinstance(module, PIIP)]:
        for part in (*(block for branch in piip.branches for block in branch.blocks), *piip.interactions):
            fully_shard(part, mesh=mesh, mp_policy=inner, reshard_after_forward=True)
    for name, head in model.named_children():
        if name != "backbone" and any(True for _ in head.parameters()):
            # heads come last in the forward and first in the backward pass: they stay gathered between
            fully_shard(head, mesh=mesh, mp_policy=full, reshard_after_forward=False)
            head._stays_gathered = True  # type: ignore[assignment]
            if hasattr(head, "losses"):  # where the project's own detectors enter them in training
                register_fsdp_forward_method(head, "losses")
    fully_shard(model, mesh=mesh, mp_policy=full, reshard_after_forward=False)
    return model


def materialise(model: nn.Module, device: torch.device) -> nn.Module:
    """Give the parts of a sharded model that are on the meta device memory, this process's share, unset.

    What no file of weights has to hold is set: layer scales start as built.
    """

    def allocate(tensor: Tensor) -> Tensor:
        return torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.to(device)

    absent = [
        module for module in model.modules() if any(p.is_meta for p in module.parameters(recurse=False))
    ]
    model._apply(allocate)
    for module in model.modules():
        if isinstance(module, SharedDropPath):
            module.keep.fill_(1 - module.drop_prob)
        fill_buffers = getattr(module, "init_non_persistent_buffers", None)
        if fill_buffers is not None:  # of timm's rotary positions and attention
            fill_buffers()
    for module in absent:
        if isinstance(module, LayerScale):
            module.reset_parameters()
    return model


@torch.no_grad()
def fill(target: Tensor, source: Tensor, origin: str, name: str) -> None:
    """Copy this process's part of a tensor, reading no more of it.

    Args:
        target: of a sharded model; what is not sharded is copied whole.
        source: all of it, as a file that is mapped into memory has it.
        origin: the file, for errors.
        name: of the tensor, likewise.

    Raises:
        ValueError: the part holds what the target cannot, see `check_values`.
    """
    source = source.reshape(target.shape)
    if isinstance(target, DTensor):
        shape, offset = compute_local_shape_and_global_offset(
            target.shape, target.device_mesh, target.placements
        )
        for dim, (length, start) in enumerate(zip(shape, offset, strict=True)):
            source = source.narrow(dim, start if length else 0, length)
        target = target.to_local()
    check_values({name: source}, origin, {name: target})
    target.copy_(source)


def load_pretrained_parts(model: nn.Module) -> None:
    """As :func:`piip.weights.pretrained.load_pretrained`, each process reading its part of the files.

    Raises:
        ConnectionError, FileNotFoundError, ValueError: for weights that are not to be had, or do not fit.
    """
    for name, branch in model.named_modules():
        if isinstance(branch, Branch) and branch.pretrained is not None:
            origin = f"{name}: {branch.pretrained.source}"
            if isinstance(branch, TimmBranch):
                fitted = timm_state(branch, origin)
            else:
                state = read_source(branch.pretrained.source, mmap=True)
                fitted = fit_branch(state, branch, branch.pretrained.family, origin)
            for key, tensor in branch.state_dict().items():
                if key in fitted:
                    fill(tensor, fitted[key], origin, key)
            _logger.info(f"{name} starts from {branch.pretrained.source}")


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Keep all weights gathered: within, forward passes need no other process, so their numbers may differ.

    In bfloat16, a model of 7.3 billion parameters takes 15 GB then. Other models are left alone.
    """
    groups = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for group in groups:
        group.set_reshard_after_forward(False, recurse=False)
        group.unshard()
    try:
        yield
    finally:
        for group in groups:
            group.reshard()
            between = group is not model and not getattr(group, "_stays_gathered", False)
            group.set_reshard_after_forward(between, recurse=False)
