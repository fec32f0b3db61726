"""What a training says of itself beyond its losses: rates, gradients, interactions, speed, memory."""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Mapping

import torch
from detectron2.engine.train_loop import HookBase
from torch import Tensor, nn

from ...interaction import Injector, Interaction
from ..parameter_groups import part_namer

__all__ = ["PartMetrics", "Throughput"]

_logger = logging.getLogger("detectron2.piip")

_WAIT = 0.1  # share of the time that training may wait for data until the log warns


class PartMetrics(HookBase):
    """Learning rate and gradient norm of each branch and other part, and how much the branches listen.

    Metrics, every `period` iterations, and no cost in the others: `lr/PART` (the highest of the part's
    parameters, which is its last block's under layer-wise decay), `grad_norm/PART` (before clipping), and
    `gamma/interactionN.branchA_to_branchB.attention` and `.ffn`, the mean magnitude of the factor that an
    interaction gives to what it adds. Gammas start at zero: where one stays there, B does not hear A.
    """

    def __init__(self, model: nn.Module, period: int) -> None:
        """
        Args:
            model: the model as it is trained.
            period: of the log, in iterations.
        """
        part = part_namer(model)
        self._parts: dict[str, list[nn.Parameter]] = defaultdict(list)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self._parts[part(name)].append(parameter)
        self._gammas = _gammas(model)
        self._period = period

    def after_backward(self) -> None:
        if (self.trainer.iter + 1) % self._period:
            return
        values: dict[str, Tensor] = {}
        for name, parameters in self._parts.items():
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            values[f"grad_norm/{name}"] = _whole(torch.nn.utils.get_total_norm(gradients))
        values |= {
            f"gamma/{name}": _whole(gamma.detach().abs().mean()) for name, gamma in self._gammas.items()
        }
        on_device = torch.stack([value.float().reshape(()) for value in values.values()])
        numbers = dict(zip(values, on_device.tolist(), strict=True))  # one wait for a GPU
        self.trainer.storage.put_scalars(**numbers, **self._rates(), smoothing_hint=False)

    def _rates(self) -> dict[str, float]:
        groups = self.trainer.optimizer.param_groups
        rate = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
        return {
            f"lr/{name}": max(rate.get(id(parameter), 0.0) for parameter in parameters)
            for name, parameters in self._parts.items()
        }


def _gammas(model: nn.Module) -> dict[str, nn.Parameter]:
    """The factors of all interactions, named by their number (from 1), pair of branches and direction."""
    found: dict[str, nn.Parameter] = {}
    interactions = [module for module in model.modules() if isinstance(module, Interaction)]
    for number, interaction in enumerate(interactions, start=1):
        for (small, large), unit in zip(interaction.pairs, interaction.units.values(), strict=True):
            for source, target, injector in (
                (large, small, unit.large_to_small),
                (small, large, unit.small_to_large),
            ):
                if isinstance(injector, Injector):
                    name = f"interaction{number}.branch{source}_to_branch{target}"
                    gammas = {"attention": injector.ca_gamma}
                    if injector.ffn is not None:
                        gammas["ffn"] = injector.cffn_gamma
                    # there are none where they were folded into weights for prediction
                    found |= {f"{name}.{kind}": gamma for kind, gamma in gammas.items() if gamma is not None}
    return found


def _whole(value: Tensor) -> Tensor:
    """A scalar of which a sharded model has one for all processes."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


class Throughput(HookBase):
    """Images a second, memory, and the share of the time that training waits for data.

    Metrics, every `period` iterations: `images_per_s` over all processes, evaluations and checkpoints aside,
    `memory_mb` (the peak so far; of the GPU, or resident memory), `data_wait` (0 to 1). When that exceeds a
    tenth, the log says so, once; the first period, in which workers start, does not count.
    """

    def __init__(self, batch_size: int, period: int, device: str | torch.device) -> None:
        """
        Args:
            batch_size: images an iteration, over all processes.
            period: of the log, in iterations.
            device: that is trained on.
        """
        self._batch_size, self._period = batch_size, period
        self._device = torch.device(device)
        self._start, self._steps, self._seconds, self._waited = 0.0, 0, 0.0, 0.0
        self._periods, self._warned = 0, False

    def before_step(self) -> None:
        self._start = time.perf_counter()

    def after_step(self) -> None:
        storage = self.trainer.storage
        self._seconds += time.perf_counter() - self._start
        self._steps += 1
        self._waited += _latest(storage.latest(), "data_time")
        if (self.trainer.iter + 1) % self._period:
            return
        waiting = self._waited / self._seconds
        storage.put_scalars(
            images_per_s=self._batch_size * self._steps / self._seconds,
            memory_mb=self._memory() / 2**20,
            data_wait=waiting,
            smoothing_hint=False,
        )
        self._periods += 1
        if waiting > _WAIT and self._periods > 1 and not self._warned:
            self._warned = True
            _logger.warning(
                f"training waits for data {waiting:.0%} of the time: raise dataloader.train.num_workers, "
                "put the images on a faster disk, or store them smaller"
            )
        self._steps, self._seconds, self._waited = 0, 0.0, 0.0

    def _memory(self) -> int:
        """The highest so far, in bytes."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _latest(metrics: Mapping[str, tuple[float, int]], name: str) -> float:
    return metrics[name][0] if name in metrics else 0.0
