"""What happens between the steps of a training: schedule, checkpoints, evaluation, logs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from detectron2.engine import hooks
from detectron2.engine.train_loop import HookBase
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import nn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from .checkpoints.checkpoint import Checkpointer
from .checkpoints.sharded_checkpoint import ShardedCheckpointer
from .config import instantiate
from .distributed.preemption import Preemption
from .ema import AverageWeights, EMAUpdate
from .evaluation import evaluate_both
from .logs.monitoring import PartMetrics, Throughput
from .logs.writers import Logs

__all__ = ["PeriodicCheckpointer", "ProgressBar", "training_hooks"]


def training_hooks(
    cfg: DictConfig,
    model: nn.Module,
    checkpointer: Checkpointer,
    average: AverageWeights | None = None,
    *,
    schedule: HookBase | None = None,
    test: Callable[[], Mapping[str, Any]] | None = None,
) -> list[HookBase | None]:
    """The hooks of a training in the order in which they run; None for those that this rank skips.

    Args:
        cfg: the config of `piip.engine.train.train`.
        model: the model as it is trained.
        checkpointer: writes its checkpoints.
        average: of its weights, if one is kept.
        schedule: of the learning rates; None for the config's `lr_multiplier`.
        test: evaluates and returns metrics; None for the config's evaluation.
    """
    main_process = comm.is_main_process()
    batch_size = cfg.dataloader.train.total_batch_size
    return [
        hooks.IterationTimer(),
        PartMetrics(model, cfg.train.log_period),
        Throughput(batch_size, cfg.train.log_period, cfg.train.device) if main_process else None,
        schedule or hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier, "lr_multiplier")),
        EMAUpdate(average) if average else None,
        _checkpoints(cfg, checkpointer),
        Preemption(),  # once the step is complete, and before an evaluation
        hooks.EvalHook(cfg.train.eval_period, test or (lambda: evaluate_both(cfg, model, average))),
        Logs(cfg) if main_process else None,
        ProgressBar() if main_process else None,
    ]


def _checkpoints(cfg: DictConfig, checkpointer: Checkpointer) -> HookBase:
    if isinstance(checkpointer, ShardedCheckpointer):  # every rank writes, and it deletes old ones itself
        return ShardedCheckpoints(checkpointer, period=cfg.train.checkpointer.period)
    return PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer)


class ShardedCheckpoints(hooks.PeriodicCheckpointer):
    """Detectron2's hook, which waits at the end of training until the last checkpoint is written."""

    def after_train(self) -> None:
        self.checkpointer.wait()


class PeriodicCheckpointer(hooks.PeriodicCheckpointer):
    """Detectron2's hook, whose `max_to_keep` also counts the checkpoints written before a resumption.

    Every rank has it: where the weights of one are not finite, all stop. Rank 0 writes.
    """

    def after_step(self) -> None:
        iteration = self.trainer.iter
        if (iteration + 1) % self.period == 0 or iteration + 1 >= self.max_iter:
            self.checkpointer.check_weights(f"of iteration {iteration}")
        if comm.is_main_process():
            super().after_step()

    def before_train(self) -> None:
        super().before_train()
        self.recent_checkpoints = [
            str(path)
            for path in sorted(
                Path(self.checkpointer.save_dir).glob(f"{self.file_prefix}_" + "[0-9]" * 7 + ".pth")
            )
            if int(path.stem.rpartition("_")[2]) < self.trainer.start_iter
        ]


class ProgressBar(HookBase):
    """A progress bar on a terminal; elsewhere nothing. Log lines are printed above it."""

    _bar: tqdm[Any] | None = None  # training may end before it begins

    def before_train(self) -> None:
        self._bar = tqdm(
            total=self.trainer.max_iter,
            initial=self.trainer.start_iter,
            unit="it",
            desc="training",
            disable=None,  # unless stderr is a terminal
            dynamic_ncols=True,
        )
        handlers = [name for name in ("root", "detectron2", "fvcore") if logging.getLogger(name).handlers]
        self._logs = logging_redirect_tqdm([logging.getLogger(name) for name in handlers])
        if not self._bar.disable:
            self._logs.__enter__()

    def after_step(self) -> None:
        if self._bar is not None and not self._bar.disable:
            if "total_loss" in self.trainer.storage.latest():  # not before a first step with a finite loss
                loss, _ = self.trainer.storage.latest()["total_loss"]
                self._bar.set_postfix_str(f"loss {loss:.3g}", refresh=False)
            self._bar.update()

    def after_train(self) -> None:
        if self._bar is None:
            return
        if not self._bar.disable:
            self._logs.__exit__(None, None, None)
        self._bar.close()
