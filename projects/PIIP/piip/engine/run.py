"""A training from an iteration to its end, whatever that is."""

from __future__ import annotations

import logging
from datetime import timedelta

from detectron2.utils import comm

from .checkpoints.checkpoint import Checkpointer
from .checkpoints.sharded_checkpoint import ShardedCheckpointer
from .data.workers import DataError
from .distributed.collectives import barrier
from .distributed.preemption import Preempted, watch
from .trainer import Trainer

__all__ = ["run"]

_logger = logging.getLogger("detectron2.piip")
_SAVING = timedelta(minutes=10)  # that a last checkpoint may take


def run(trainer: Trainer, checkpointer: Checkpointer, start: int, max_iter: int) -> None:
    """Train; where training stops early, save what can be saved, and log how to resume.

    Args:
        trainer: with its hooks.
        checkpointer: of its model.
        start: first iteration.
        max_iter: the iteration after the last.

    Raises:
        DataError: there is no next batch; a checkpoint of the last step is there.
        FloatingPointError: a loss or a weight became infinite or NaN.
        KeyboardInterrupt: Ctrl-C.
        Preempted: SIGTERM was received; a checkpoint of the last step is there.
    """
    with watch():
        try:
            trainer.train(start, max_iter)
        except KeyboardInterrupt:
            _logger.error(f"interrupted at iteration {trainer.iter}: {_resume_hint(checkpointer)}")
            raise
        except (Preempted, DataError) as end:
            # neither comes in the middle of a step
            sharded = isinstance(checkpointer, ShardedCheckpointer)
            # all processes write shards, but an evaluation may have failed in some only
            alike = isinstance(end, Preempted) or trainer.completed < trainer.iter
            if alike if sharded else comm.is_main_process():
                _save_unless_saved(checkpointer, trainer)
            if comm.is_main_process():
                told = "told to stop by SIGTERM" if isinstance(end, Preempted) else "stopped"
                _logger.error(f"{told} after iteration {trainer.completed}: {_resume_hint(checkpointer)}")
            barrier(_SAVING)  # a launcher ends all soon after the first has ended
            raise


def _save_unless_saved(checkpointer: Checkpointer, trainer: Trainer) -> None:
    """Save a run between two steps, where it has made any."""
    done = trainer.completed
    name = f"model_{done:07d}"
    over = done == trainer.max_iter - 1 and checkpointer.saved == "model_final"
    if done >= trainer.start_iter and checkpointer.saved != name and not over:
        trainer.iter = done
        checkpointer.save(name, iteration=done)
        if isinstance(checkpointer, ShardedCheckpointer):
            checkpointer.wait()


def _resume_hint(checkpointer: Checkpointer) -> str:
    last = checkpointer.get_checkpoint_file()
    return f"--resume continues from {last}" if last else "no checkpoint was saved yet"
