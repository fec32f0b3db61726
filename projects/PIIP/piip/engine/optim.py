"""Layer-wise learning-rate decay for branches of unequal depth."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from torch import nn

from ..backbone import PIIP

if TYPE_CHECKING:  # classifiers take the numbers of layers from here, and need no configs
    from omegaconf import DictConfig

    from .settings import TrainSettings

__all__ = ["layer_decay_factors", "layer_numbers", "param_groups", "scaled_lr"]

_logger = logging.getLogger("detectron2.piip")


def layer_numbers(model: nn.Module) -> dict[str, int]:
    """How deep each parameter of a model that holds a PIIP lies.

    With L blocks in the first (largest) model that takes part, a parameter before the blocks is in layer 0,
    the last block of each branch in layer L, and everything that is not part of a branch in layer L + 1. A
    branch of fewer blocks takes larger steps, ``L / depth``, rounded down.

    Args:
        model: any module with one :class:`piip.PIIP` inside.

    Returns:
        parameter name -> layer.

    Raises:
        ValueError: when there is no PIIP in the model, or more than one.
    """
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, PIIP)]
    if len(found) != 1:
        raise ValueError(f"layer-wise decay needs a model with one PIIP backbone, this one has {len(found)}")
    ((prefix, piip),) = found
    # ConvNeXts take no part: the first that does sets the scale
    depths = [
        b.depth for b in piip.branches if any(b.decay_depth(n) is not None for n, _ in b.named_parameters())
    ]
    num_layers = depths[0] if depths else 0
    numbers = {name: num_layers + 1 for name, _ in model.named_parameters()}
    for j, branch in enumerate(piip.branches):
        root = ".".join(filter(None, (prefix, "branches", str(j))))
        for name, _ in branch.named_parameters():
            depth = branch.decay_depth(name)
            if depth is not None:
                numbers[f"{root}.{name}"] = math.floor(depth * num_layers / branch.depth)
    return numbers


def layer_decay_factors(model: nn.Module, decay_rate: float) -> dict[str, float]:
    """Learning-rate factor of each parameter of a model that holds a PIIP.

    What is not part of a branch has factor 1; every layer below, see :func:`layer_numbers`, has `decay_rate`
    times that of the next.

    Args:
        model: any module with one :class:`piip.PIIP` inside.
        decay_rate: factor between neighbouring layers.

    Returns:
        parameter name -> factor.

    Raises:
        ValueError: when there is no PIIP in the model, or more than one.
    """
    numbers = layer_numbers(model)
    top = max(numbers.values())
    return {name: decay_rate ** (top - layer) for name, layer in numbers.items()}


def param_groups(
    model: nn.Module,
    *,
    base_lr: float,
    weight_decay: float,
    layer_decay_rate: float = 1.0,
    undecayed: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Parameter groups of the published recipe.

    Vectors and biases are not decayed. Everything else is, the position embeddings and the scalar weights of
    the merge (0-dimensional, so no vectors) included.

    Args:
        model: the model; frozen parameters are left out.
        base_lr: learning rate where the factor is 1.
        weight_decay: weight decay of all but vectors and biases.
        layer_decay_rate: see :func:`layer_decay_factors`; 1 for no decay over depth (no PIIP is needed then).
        undecayed: last parts of the names of further parameters without weight decay, such as "pos_embed".

    Returns:
        Groups for a ``torch.optim`` optimizer, ordered by learning rate.
    """
    factors = layer_decay_factors(model, layer_decay_rate) if layer_decay_rate != 1.0 else {}
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            last = name.rpartition(".")[2]
            # a vector of one number stands for a 0-dimensional parameter, which FSDP cannot shard
            vector = parameter.ndim == 1 and parameter.numel() > 1
            exempt = vector or last == "bias" or last in undecayed
            groups[base_lr * factors.get(name, 1.0), 0.0 if exempt else weight_decay].append(parameter)
    return [
        {"params": parameters, "lr": lr, "weight_decay": decay}
        for (lr, decay), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def scaled_lr(cfg: DictConfig, settings: TrainSettings) -> float:
    """A config's learning rate, scaled to its batch as the settings say.

    Linearly (arXiv 1706.02677, for SGD) or by the root (arXiv 2205.10287, for Adam).

    Args:
        cfg: its `optimizer.lr` is meant for `train.reference_batch_size` images per step.
        settings: those of its `train`.
    """
    lr: float = cfg.optimizer.lr
    if settings.reference_batch_size:
        ratio = cfg.dataloader.train.total_batch_size / settings.reference_batch_size
        lr *= ratio if settings.lr_scaling == "linear" else math.sqrt(ratio)
        _logger.info(f"the learning rate is {lr:g} for batches of {ratio:g} times the reference")
    return lr
