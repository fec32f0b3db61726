"""Classifiers on the engine's trainer, with what timm makes: data, mixing, loss, optimizer, schedule, EMA."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from detectron2.engine.train_loop import HookBase
from omegaconf import OmegaConf
from timm.data import Mixup
from torch import Tensor, nn

from ..engine import trainer as engine
from ..engine.checkpoints.checkpoint import METADATA
from ..engine.ema import AverageWeights
from ..engine.hooks import training_hooks
from ..engine.nonfinite import NonfiniteGuard
from ..engine.run import run
from ..numerics import dtype_of, without_autocast
from ..weights.files.tensors import read_file
from .checkpoint import CLASSES, ClassifierCheckpointer
from .data import Processes, TrainBatches

__all__ = ["Plan", "Scheduler", "Trainer"]

_logger = logging.getLogger("piip.classification")
_PER_EPOCH = "iterations_per_epoch"  # key of a checkpoint's metadata

Evaluate = Callable[[nn.Module], Mapping[str, float]]


class Scheduler(Protocol):
    """A schedule of learning rates as timm has them, told how far training is."""

    def step(self, epoch: int) -> None: ...

    def step_update(self, num_updates: int) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long to train, and what to do on the way.

    Attributes:
        epochs: how often to see the training set.
        output_dir: folder for checkpoints and metrics.
        precision: "float32", or "bfloat16" (autocast; weights and optimizer stay float32).
        eval_period: epochs between evaluations; 0 for one at the end only.
        checkpoint_period: iterations between checkpoints; 0 for one at the end of each epoch.
        keep_checkpoints: how many of them to keep.
        log_period: iterations between lines in the log.
        schedule_lag: epochs by which the schedule lags behind. The published training told its scheduler the
            number of the epoch that had ended, where timm expects that of the next: 1.
    """

    epochs: int
    output_dir: str
    precision: str = "float32"
    eval_period: int = 1
    checkpoint_period: int = 0
    keep_checkpoints: int = 2
    log_period: int = 50
    schedule_lag: int = 0


@dataclass(frozen=True)
class _Batch:
    """A batch of training; the report of a loss that is not finite goes over its images.

    Attributes:
        images: ``(B, 3, H, W)`` float32, normalised.
        targets: ``(B,)`` class numbers.
        files: the images' names, as far as they are known.
    """

    images: Tensor
    targets: Tensor
    files: Callable[[], list[str]]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        names = self.files() or ["unnamed"] * len(self.images)
        for name, image, target in zip(names, self.images, self.targets, strict=True):
            yield {"file_name": name, "image": image, "class": int(target)}


class _Batches:
    """The batches of all epochs, from an iteration on."""

    def __init__(self, batches: TrainBatches) -> None:
        self.batches, self.start = batches, 0

    def __iter__(self) -> Iterator[_Batch]:
        epoch, first = divmod(self.start, len(self.batches))
        while True:
            for number, (images, targets) in enumerate(self.batches.epoch(epoch, first), start=first):
                yield _Batch(images, targets, lambda e=epoch, n=number: self.batches.files(e, n))  # type: ignore[misc]
            epoch, first = epoch + 1, 0


class _Objective(nn.Module):
    """From a batch to its loss, as the engine's trainer wants it."""

    def __init__(self, model: nn.Module, mixup: Mixup, loss: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.model, self.mixup, self.loss, self.device = model, mixup, loss, device

    def forward(self, batch: _Batch) -> dict[str, Tensor]:
        """Mix, classify, compare. Mixing works in place, on a copy."""
        images, soft = self.mixup(
            batch.images.to(self.device, non_blocking=True, copy=True),
            batch.targets.to(self.device, non_blocking=True),
        )
        logits = self.model(images)
        with without_autocast(self.device):
            return {"loss": self.loss(logits.float(), soft)}


class _Schedule(HookBase):
    """Tells timm's schedule how far training is, and the log the rate and the epoch."""

    def __init__(self, trainer: Trainer) -> None:
        self.owner = trainer

    def before_train(self) -> None:
        self.owner.scheduler.step_update(self.trainer.start_iter)

    def before_step(self) -> None:
        epoch, number = divmod(self.trainer.iter, len(self.owner.batches))
        if number == 0 or self.trainer.iter == self.trainer.start_iter:
            self.owner.scheduler.step(max(epoch - self.owner.plan.schedule_lag, 0))

    def after_step(self) -> None:
        self.owner.scheduler.step_update(self.trainer.iter + 1)
        self.trainer.storage.put_scalars(
            lr=self.owner.optimizer.param_groups[0]["lr"],
            epoch=self.trainer.iter // len(self.owner.batches),
            smoothing_hint=False,
        )


class Trainer:
    """Trains a classifier with steps that repeat bit for bit on the CPU.

    What a step draws at random (mixing, drop path) depends on (seed, rank, iteration) only, what data draw on
    (seed, epoch, index), so that nothing but the seed is kept in checkpoints.

    Args:
        model: from images to logits, on its device. With several processes the trainer wraps it.
        batches: training data.
        mixup: makes targets soft, and mixes images with probability `mixup.mix_prob`.
        loss: of logits and soft targets ``(B, classes)``, such as `timm.loss.SoftTargetCrossEntropy`.
        optimizer: of the model's parameters.
        scheduler: of its learning rates.
        plan: how long and how.
        ema: a moving average of the weights, updated after each step.
        seed: of this run.
        processes: those that train together, whose process group is up.
        classes: their names, for checkpoints to keep.

    Raises:
        ValueError: a batch cannot be mixed, or the plan's precision is not known.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: TrainBatches,
        *,
        mixup: Mixup,
        loss: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: Scheduler,
        plan: Plan,
        ema: AverageWeights | None = None,
        seed: int = 0,
        processes: Processes | None = None,
        classes: list[str] | None = None,
    ) -> None:
        if batches.batch_size % 2:
            raise ValueError(
                f"{batches.batch_size} images a process cannot be mixed in pairs: make total_batch_size an "
                "even number of them for each process"
            )
        dtype_of(plan.precision)
        self.model, self.batches, self.plan, self.ema = model, batches, plan, ema
        self.optimizer, self.scheduler = optimizer, scheduler
        self.processes = processes or Processes()
        device = next(model.parameters()).device
        called: nn.Module = _Objective(model, mixup, loss, device)
        if self.processes.count > 1:
            devices = None if device.type == "cpu" else [device]
            called = nn.parallel.DistributedDataParallel(called, device_ids=devices)
        Path(plan.output_dir).mkdir(parents=True, exist_ok=True)
        self.loop = engine.Trainer(
            called,
            _Batches(batches),
            optimizer,
            seed=seed,
            precision=plan.precision,
            guard=NonfiniteGuard(folder=plan.output_dir),
        )
        saved: dict[str, Any] = {"trainer": self.loop, **({"ema": ema} if ema else {})}
        metadata = {CLASSES: classes or [], _PER_EPOCH: len(batches)}
        self.checkpointer = ClassifierCheckpointer(model, plan.output_dir, metadata=metadata, **saved)
        self.iteration = 0

    @property
    def max_iterations(self) -> int:
        """Iterations of the whole training."""
        return self.plan.epochs * len(self.batches)

    def train(self, evaluate: Evaluate | None = None) -> dict[str, float]:
        """Train from where the trainer is to the end.

        Args:
            evaluate: measures a model; None for no evaluation.

        Returns:
            The last evaluation's metrics, those of the average with the prefix "ema_".

        Raises:
            DataError, FloatingPointError, KeyboardInterrupt, Preempted: see :func:`piip.engine.run.run`.
        """
        results: dict[str, float] = {}

        def test() -> dict[str, float]:
            if evaluate is not None:
                results.update(evaluate(self.model))
                if self.ema is not None:
                    with self.ema.swapped():
                        results.update({f"ema_{name}": value for name, value in evaluate(self.model).items()})
                _logger.info(", ".join(f"{name} {value:.3f}" for name, value in results.items()))
            return results

        schedule = _Schedule(self)
        self.loop.register_hooks(
            training_hooks(
                self._engine_config(), self.model, self.checkpointer, self.ema, schedule=schedule, test=test
            )
        )
        self.batches.seed = self.loop.seed
        self.loop.data_loader.start = self.iteration
        run(self.loop, self.checkpointer, self.iteration, self.max_iterations)
        return results

    def _engine_config(self) -> Any:
        """The plan in the engine's fields, which count iterations."""
        plan, per_epoch = self.plan, len(self.batches)
        period = plan.checkpoint_period or per_epoch
        train = {
            "output_dir": plan.output_dir,
            "max_iter": self.max_iterations,
            "log_period": plan.log_period,
            "eval_period": plan.eval_period * per_epoch,
            "checkpointer": {"period": period, "max_to_keep": plan.keep_checkpoints},
            "device": str(self.loop.device),
        }
        batch = {"total_batch_size": self.batches.batch_size * self.processes.count}
        return OmegaConf.create({"train": train, "dataloader": {"train": batch}})

    def resume(self) -> bool:
        """Go on from the folder's last checkpoint; False where there is none.

        On the CPU the result is bit for bit that of a run that never stopped.

        Raises:
            ValueError: it is a checkpoint of another training.
        """
        if not self.checkpointer.has_checkpoint():
            return False
        last = self.checkpointer.get_checkpoint_file()
        self._check_resumable(read_file(last, mmap=True), last)
        self.checkpointer.load(last)
        self.iteration = self.loop.iter + 1
        if self.iteration > self.max_iterations:
            raise ValueError(
                f"train.plan.epochs={self.plan.epochs} are {self.max_iterations} iterations, and {last} has "
                f"{self.iteration} already: give more epochs, or start a new run without --resume"
            )
        _logger.info(f"going on from iteration {self.iteration} ({last})")
        return True

    def _check_resumable(self, content: Mapping[str, Any], last: str) -> None:
        if "trainer" not in content:
            raise ValueError(
                f"{last} is of an earlier version and cannot be resumed: start from its weights, with "
                "train.init_checkpoint and another train.plan.output_dir"
            )
        kept = content.get(METADATA, {})
        for key, value in self.checkpointer.metadata.items():
            if kept.get(key) != value:
                raise ValueError(
                    f"{last} cannot be resumed: its {key} is {kept.get(key)}, now it is {value}; give the "
                    "data and total_batch_size it was trained with"
                )
        if ("ema" in content) != (self.ema is not None):
            raise ValueError(f"{last} cannot be resumed: only one of it and the config has train.ema")
