"""Blocks through PyTorch's compiler, one by one, with activation checkpointing inside.

Segment Anything 2 and DINOv3 do the same: a block compiles in seconds, once for all blocks that are alike,
and what lies between blocks (resizing, class tokens, heads whose shapes depend on data) stays Python.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..backbone import PIIP

__all__ = ["compile_blocks", "compiled_parts", "own_checkpointing"]


def compiled_parts(model: nn.Module) -> Iterator[nn.Module]:
    """Blocks of all branches, then the units of all interactions, of the PIIPs in a model.

    Raises:
        ValueError: there is no PIIP in it.
    """
    piips = [module for module in model.modules() if isinstance(module, PIIP)]
    if not piips:
        raise ValueError("there is no PIIP in this model: train.compile and train.parallel='fsdp' need one")
    for piip in piips:
        for branch in piip.branches:
            yield from branch.blocks
        for interaction in piip.interactions:
            yield from interaction.units.values()


class SharedDropPath(DropPath):
    """timm's `DropPath` with its rate in a tensor: blocks that differ in it alone share a compiled graph."""

    keep: Tensor

    def __init__(self, drop_prob: float) -> None:
        super().__init__(drop_prob)
        self.register_buffer("keep", torch.tensor(1 - drop_prob, device="cpu"), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = self.keep.to(x.dtype)
        kept = torch.rand((x.shape[0],) + (1,) * (x.ndim - 1), dtype=x.dtype, device=x.device) < keep
        return x * (kept / keep)


def _share_drop_path(block: nn.Module) -> None:
    for module in list(block.modules()):
        for name, child in module.named_children():
            if isinstance(child, DropPath) and not isinstance(child, SharedDropPath):
                rate: float = child.drop_prob
                setattr(module, name, SharedDropPath(rate) if rate else nn.Identity())


def own_checkpointing(model: nn.Module) -> None:
    """Move activation checkpointing from around the blocks of a model's branches into their `forward`.

    There the compiler sees it, and FSDP gathers a block's weights once for recomputation and gradient.
    """
    for piip in (module for module in model.modules() if isinstance(module, PIIP)):
        for branch in piip.branches:
            if branch.grad_checkpointing:
                branch.set_grad_checkpointing(False)
                for block in branch.blocks:
                    _replace_forward(block, functools.partial(checkpoint, block.forward, use_reentrant=False))


def _replace_forward(module: nn.Module, forward: Callable[..., Any]) -> None:
    module.forward = forward


def compile_blocks(model: nn.Module, *, backend: str = "inductor") -> nn.Module:
    """Compile the parts of a model that :func:`compiled_parts` names, for any size of image and batch.

    Only `forward` is compiled: names of parameters stay, and what is hooked to a module, as FSDP is, runs
    outside. Nothing in a block may break the graph (`fullgraph`). Drop path draws other numbers than before.

    Args:
        model: changed in place, before it is wrapped or sharded.
        backend: of `torch.compile`.

    Returns:
        The model.
    """
    own_checkpointing(model)
    parts = list(compiled_parts(model))
    # PyTorch keeps the graphs of all blocks under the one forward that they share: per kind of block (branch,
    # window, drop path or none), for training and evaluation, in two precisions, with and without gradient
    limit = 8 * len({id(type(part)) for part in parts}) + 4 * len(parts)
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, limit)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, limit)
    for part in parts:
        _share_drop_path(part)
        _replace_forward(part, torch.compile(part.forward, fullgraph=True, dynamic=True, backend=backend))
    return model
