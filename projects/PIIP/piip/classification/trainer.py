"""The training loop of classifiers, around what timm makes: data, mixing, loss, optimizer, schedule, EMA."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from timm.data import Mixup
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ..numerics import autocast
from ..seeding import mix_seed, seed_all
from ..weights.files.tensors import read_file
from .checkpoint import CLASSES, Folder
from .data import Processes, TrainBatches
from .metrics import MetricsFile

__all__ = ["Plan", "Scheduler", "Trainer"]

_logger = logging.getLogger("piip.classification")

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
        ValueError: a batch cannot be mixed.
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
        ema: ModelEmaV3 | None = None,
        seed: int = 0,
        processes: Processes | None = None,
        classes: list[str] | None = None,
    ) -> None:
        if batches.batch_size % 2:
            raise ValueError(
                f"{batches.batch_size} images a process cannot be mixed in pairs: make total_batch_size an "
                "even number of them for each process"
            )
        self.model, self.batches, self.mixup, self.loss = model, batches, mixup, loss
        self.optimizer, self.scheduler, self.plan, self.ema = optimizer, scheduler, plan, ema
        self.seed, self.processes, self.classes = seed, processes or Processes(), classes or []
        self.device = next(model.parameters()).device
        self.folder = Folder(plan.output_dir, plan.keep_checkpoints)
        self.iteration = 0
        self.parallel: nn.Module = model
        if self.processes.count > 1:
            devices = None if self.device.type == "cpu" else [self.device]
            self.parallel = nn.parallel.DistributedDataParallel(model, device_ids=devices)

    @property
    def max_iterations(self) -> int:
        """Iterations of the whole training."""
        return self.plan.epochs * len(self.batches)

    def step(self, images: Tensor, targets: Tensor) -> Tensor:
        """One iteration.

        Args:
            images: ``(B, 3, H, W)``; they may be mixed in place.
            targets: ``(B,)`` class numbers.

        Returns:
            The loss, 0-dimensional.

        Raises:
            FloatingPointError: it is infinite or NaN; the weights are as the last step left them.
        """
        seed_all(mix_seed(self.seed, self.processes.rank, self.iteration))
        images, soft = self.mixup(
            images.to(self.device, non_blocking=True), targets.to(self.device, non_blocking=True)
        )
        with autocast(self.device, self.plan.precision):
            logits = self.parallel(images)
        loss: Tensor = self.loss(logits.float(), soft)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"training diverged at iteration {self.iteration} (loss is {loss.item():g}): it stops, "
                "checkpoints stay as they are; lower optimizer.lr or look at the data"
            )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.iteration += 1
        self.scheduler.step_update(self.iteration)
        if self.ema is not None:
            self.ema.update(self.model, step=self.iteration)
        return loss.detach()

    def train(self, evaluate: Evaluate | None = None) -> dict[str, float]:
        """Train from where the trainer is to the end.

        Args:
            evaluate: measures a model; None for no evaluation.

        Returns:
            The last evaluation's metrics, those of the average with the prefix "ema_".

        Raises:
            FloatingPointError: a loss or a weight became infinite or NaN.
            KeyboardInterrupt: Ctrl-C, once the log says how to go on.
        """
        per_epoch = len(self.batches)
        self.model.train()
        self.scheduler.step_update(self.iteration)
        results: dict[str, float] = {}
        main = self.processes.rank == 0
        metrics = MetricsFile(Path(self.plan.output_dir)) if main else None
        bar = tqdm(
            total=self.max_iterations,
            initial=self.iteration,
            unit="it",
            desc="training",
            disable=None if main else True,  # None: unless stderr is a terminal
        )
        try:
            with logging_redirect_tqdm():
                while self.iteration < self.max_iterations:
                    epoch, start = divmod(self.iteration, per_epoch)
                    self.scheduler.step(max(epoch - self.plan.schedule_lag, 0))
                    self._run_epoch(epoch, start, metrics, bar)
                    last = epoch + 1 == self.plan.epochs
                    if main and not last and self.plan.checkpoint_period == 0:
                        self._save(f"model_{self.iteration:07d}")
                    if main and last:
                        self._save("model_final")
                    period = self.plan.eval_period
                    if evaluate and (last or (period and (epoch + 1) % period == 0)):
                        results = self._evaluate(evaluate, metrics)
        except KeyboardInterrupt:
            last_file = self.folder.last
            way_on = f"--resume continues from {last_file}" if last_file else "no checkpoint was saved yet"
            _logger.error(f"interrupted at iteration {self.iteration}: {way_on}")
            raise
        finally:
            bar.close()
        return results

    def _run_epoch(self, epoch: int, start: int, metrics: MetricsFile | None, bar: tqdm[Any]) -> None:
        rates = [group["lr"] for group in self.optimizer.param_groups]
        ready = time.perf_counter()
        seconds = 0.0
        for images, targets in self.batches.epoch(epoch, start):
            loss = self.step(images, targets)
            bar.update()
            seconds += time.perf_counter() - ready
            period = self.plan.log_period
            if self.iteration % period == 0 or self.iteration == self.max_iterations:
                value = self._mean(loss)
                rates = [group["lr"] for group in self.optimizer.param_groups]
                if metrics is not None:
                    metrics.write(
                        self.iteration,
                        {"epoch": epoch, "total_loss": value, "lr": rates[0], "time": seconds / period},
                    )
                    _logger.info(
                        f"iteration {self.iteration}/{self.max_iterations}, epoch {epoch + 1}/"
                        f"{self.plan.epochs}: loss {value:.4f}, lr {rates[0]:.3g}, "
                        f"{seconds / period:.3f} s an iteration"
                    )
                seconds = 0.0
            period = self.plan.checkpoint_period
            if self.processes.rank == 0 and period and self.iteration % period == 0:
                self._save(f"model_{self.iteration:07d}")
            ready = time.perf_counter()

    def _mean(self, loss: Tensor) -> float:
        """The loss of the whole batch, over all processes."""
        if self.processes.count > 1:
            torch.distributed.all_reduce(loss)
        return float(loss) / self.processes.count

    def _evaluate(self, evaluate: Evaluate, metrics: MetricsFile | None) -> dict[str, float]:
        results = dict(evaluate(self.model))
        if self.ema is not None:
            results |= {f"ema_{name}": value for name, value in evaluate(self.ema.module).items()}
        if metrics is not None:
            metrics.write(self.iteration, results)
            _logger.info(", ".join(f"{name} {value:.3f}" for name, value in results.items()))
        return results

    def state_dict(self) -> dict[str, Any]:
        """Everything that a run needs to go on, in tensors and plain containers."""
        return {
            "model": self.model.state_dict(),
            **({"ema": self.ema.module.state_dict()} if self.ema is not None else {}),
            "optimizer": self.optimizer.state_dict(),
            "iteration": self.iteration,
            "iterations_per_epoch": len(self.batches),
            "seed": self.seed,
            CLASSES: self.classes,
        }

    def _save(self, name: str) -> None:
        self.folder.save(name, self.state_dict())

    def resume(self) -> bool:
        """Go on from the folder's last checkpoint; False where there is none.

        On the CPU the result is bit for bit that of a run that never stopped.

        Raises:
            ValueError: it is a checkpoint of another training.
        """
        last = self.folder.last
        if last is None:
            return False
        content = read_file(last)
        ours = {"iterations_per_epoch": len(self.batches), CLASSES: self.classes}
        for key, value in ours.items():
            if content.get(key) != value:
                raise ValueError(
                    f"{last} cannot be gone on from: its {key} is {content.get(key)}, now it is {value}; "
                    "give the data and total_batch_size it was trained with"
                )
        if ("ema" in content) != (self.ema is not None):
            raise ValueError(f"{last} cannot be gone on from: one of it and the config has train.ema")
        self.model.load_state_dict(content["model"])
        if self.ema is not None:
            self.ema.module.load_state_dict(content["ema"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.iteration, self.seed = content["iteration"], content["seed"]
        self.batches.seed = self.seed
        _logger.info(f"going on from iteration {self.iteration} ({last})")
        return True
