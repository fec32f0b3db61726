"""Memory that a sharded training needs on each card, from shapes: nothing is computed, no weight is held.

The sum of what a step holds at its worst moment, as :mod:`piip.engine.distributed.sharding` lays it out
on N cards, in bytes for P numbers in all:

- weights: float32, 4 P / N; gradients: the same; AdamW's two moments: 8 P / N;
- gathered: what stays whole from forward to backward (embeddings, merge, neck, heads), weights and gradients
  in float32, and the largest block or interaction twice, one in use and the next on its way, with the
  gradient of the one in the type of training and its float32 copy that is being reduced;
- activations: the maps that enter the checkpointed blocks, what autograd keeps of all else, and what it keeps
  within the one block that is recomputed.

Gradients are complete only when most activations are gone: the sum is a bound from above. PyTorch's CUDA
context, NCCL's buffers and fragments come on top.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.modeling import GeneralizedRCNN
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from piip.backbone import PIIP
from piip.flops import build_on_meta
from piip.measure.cost import load_detector, own_input_size
from piip.numerics import autocast

__all__ = ["TrainingMemory", "activation_bytes", "config_rows", "training_memory"]


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes on each card.

    Attributes:
        weights, gradients, optimizer: this card's shards, float32.
        gathered: whole weights and gradients of what is in use.
        activations: kept for the backward pass.
    """

    weights: float
    gradients: float
    optimizer: float
    gathered: float
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.gathered + self.activations


@dataclass
class _Kept:
    """Bytes that autograd keeps, each storage counted once; weights do not count."""

    weights: set[Any]
    outside: int = 0
    largest_block: int = 0

    def __post_init__(self) -> None:
        self._seen: set[Any] = set()
        self._in_block: set[Any] | None = None
        self._block_bytes = 0
        self._alive: list[Any] = []

    def note(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.weights or key in self._seen:
            return tensor
        self._alive.append(storage)  # its address must not be used again
        if self._in_block is None:
            self._seen.add(key)
            self.outside += storage.nbytes()
        elif key not in self._in_block:
            self._in_block.add(key)
            self._block_bytes += storage.nbytes()
        return tensor

    @contextmanager
    def recomputed(self, x: Tensor) -> Iterator[None]:
        """A checkpointed block: only its input is kept, and the rest while it is recomputed."""
        self.note(x)
        self._in_block, self._block_bytes = set(), 0
        try:
            yield
        finally:
            self.largest_block = max(self.largest_block, self._block_bytes)
            self._in_block = None


def activation_bytes(model: nn.Module, images: Tensor, precision: str = "bfloat16") -> int:
    """What autograd keeps of a forward pass through the backbone, and through the heads of a Mask R-CNN.

    Blocks of branches with `grad_checkpointing` count as checkpointed. Matching, sampling and losses, whose
    sizes depend on the data, do not count.

    Args:
        model: a detector, or a PIIP alone; on the meta device. It is given fake weights.
        images: `(B, 3, H, W)` on the meta device.
        precision: "float32" or "bfloat16".
    """
    branches = [b for m in model.modules() if isinstance(m, PIIP) for b in m.branches if b.grad_checkpointing]
    blocks = [block for branch in branches for block in branch.blocks]
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            model.to_empty(device="cpu").train()
            kept = _Kept({p.untyped_storage()._cdata for p in model.parameters()})
            forwards = [(block, block.forward) for block in blocks]
            for block, forward in forwards:
                block.forward = _counted(forward, kept)
            for branch in branches:
                branch.set_grad_checkpointing(False)
            x = torch.empty(images.shape)
            with autocast("cpu", precision), torch.autograd.graph.saved_tensors_hooks(kept.note, lambda t: t):
                backbone = getattr(model, "backbone", model)
                features = backbone(x)
                if isinstance(model, GeneralizedRCNN):
                    _heads(model, features, len(x))
            for block, _ in forwards:
                del block.forward
            for branch in branches:
                branch.set_grad_checkpointing(True)
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
    return kept.outside + kept.largest_block


def _counted(forward: Any, kept: _Kept) -> Any:
    def run(x: Tensor) -> Tensor:
        with kept.recomputed(x):
            output: Tensor = forward(x)
        return output

    return run


def _heads(model: Any, features: dict[str, Tensor], batch: int) -> None:
    """The layers of a Mask R-CNN's heads, on as many regions as it samples."""
    rpn, heads = model.proposal_generator, model.roi_heads
    rpn.rpn_head([features[name] for name in rpn.in_features])
    regions = heads.batch_size_per_image * batch
    channels = features[heads.box_in_features[0]].shape[1]
    pooled = torch.empty(regions, channels, *heads.box_pooler.output_size, requires_grad=True)
    heads.box_predictor(heads.box_head(pooled))
    objects = int(regions * heads.positive_fraction)
    heads.mask_head.layers(torch.empty(objects, channels, *heads.mask_pooler.output_size, requires_grad=True))


def training_memory(
    model: nn.Module, activations: float, processes: int, *, precision: str = "bfloat16"
) -> TrainingMemory:
    """The memory of each of `processes` cards, see the module.

    Args:
        model: a detector, or a PIIP alone, on any device.
        activations: of a card's share of the batch, see :func:`activation_bytes`.
        processes: how many share the model.
        precision: of training.

    Raises:
        ValueError: there is no PIIP in the model.
    """
    piips = [module for module in model.modules() if isinstance(module, PIIP)]
    if not piips:
        raise ValueError("there is no PIIP in this model: train.parallel='fsdp' shards models with one")
    groups = [
        sum(p.numel() for p in part.parameters())
        for piip in piips
        for part in (*(block for branch in piip.branches for block in branch.blocks), *piip.interactions)
    ]
    numbers = sum(p.numel() for p in model.parameters())
    rest, largest = numbers - sum(groups), max(groups)
    width = 2 if precision == "bfloat16" else 4
    gathered = (4 + 4) * rest + (2 * width + width + 4) * largest
    share = 4 * numbers / processes
    return TrainingMemory(share, share, 2 * share, gathered, activations)


def config_rows(config_file: str, cards: list[int], images: int) -> list[dict[str, Any]]:
    """A row for each number of cards: what each of them needs, in GB (1e9 bytes).

    Args:
        config_file: a LazyConfig.
        cards: numbers of cards.
        images: images on each card, at the size the model is made for.
    """
    with build_on_meta():
        model: Any = load_detector(config_file)
        size = own_input_size(model)
        pixels = torch.empty(images, 3, *size)
    activations = activation_bytes(model, pixels)
    rows = []
    for number in cards:
        memory = training_memory(model, activations, number)
        row: dict[str, Any] = {"cards": number, "images a card": images}
        for part in ("weights", "gradients", "optimizer", "gathered", "activations", "total"):
            row[part] = getattr(memory, part) / 1e9
        rows.append(row)
    return rows
