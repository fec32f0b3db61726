"""Where a training starts: from pretrained weights, a checkpoint, or where a run stopped."""

from __future__ import annotations

import logging

from omegaconf import DictConfig

from ..weights.pretrained import load_pretrained
from .checkpoints.checkpoint import CONFIG, METADATA, Checkpointer, check_same_classes
from .checkpoints.sharded_checkpoint import about
from .distributed.sharding import is_sharded, load_pretrained_parts
from .ema import AverageWeights
from .saved_config import config_differences, dump, log_differences, parse, targets
from .trainer import Trainer

__all__ = ["kept_config", "load_start", "log_changes"]

_logger = logging.getLogger("detectron2.piip")


def load_start(
    cfg: DictConfig,
    trainer: Trainer,
    checkpointer: Checkpointer,
    average: AverageWeights | None,
    *,
    resume: bool,
) -> int:
    """Load what a training starts from.

    A run that is resumed takes weights, optimizer state, iteration and average from its last checkpoint and
    all else from the config; the log says what of that is new. Where `train.seed` is negative, the run keeps
    the seed that it drew, and the config gets it.

    Args:
        cfg: the config; its `train.seed` is changed.
        trainer, checkpointer, average: of the training, with the weights as they were built.
        resume: continue from the last checkpoint.

    Returns:
        The first iteration to run.

    Raises:
        ValueError: a checkpoint does not fit, or the run is beyond `train.max_iter`.
    """
    if not resume:
        if not cfg.train.init_checkpoint:
            # in every process, from the one download
            model = checkpointer.model
            (load_pretrained_parts if is_sharded(model) else load_pretrained)(model)
        checkpointer.load(cfg.train.init_checkpoint, [])
        if average:
            average.restart()
        return 0
    path = checkpointer.get_checkpoint_file()
    kept = kept_config(path, cfg)
    if kept is not None:
        _check_same_optimizer(cfg, kept, path)
    checkpointer.restartable = {}  # the class layers are this run's own
    seed = trainer.seed
    loaded = checkpointer.load(path)
    check_same_classes(loaded.get(METADATA, {}), checkpointer.metadata)
    start = trainer.iter + 1
    if cfg.train.max_iter < start:
        raise ValueError(
            f"train.max_iter is {cfg.train.max_iter}, and {path} has {start} iterations already: give a "
            "larger one, or start a new run without --resume"
        )
    if cfg.train.get("seed", -1) < 0:
        cfg.train.seed = trainer.seed
    else:
        trainer.seed = seed
    if average and not average.loaded:
        average.restart()
        _logger.warning(
            f"{path} has no average of the weights: it starts from the weights of iteration {start}"
        )
    if kept is not None:
        log_changes(parse(dump(cfg), trusted=targets(cfg)), kept, start)
    return start


def kept_config(path: str, cfg: DictConfig) -> DictConfig | None:
    """The config in a checkpoint of a run that goes on with another one; None where there is none."""
    text = about(path).get(CONFIG)
    return None if text is None else parse(text, trusted=targets(cfg))


def log_changes(now: DictConfig, kept: DictConfig, start: int) -> None:
    """Log what a resumed run does otherwise from an iteration on, a line per value of its parsed configs."""
    template = "{key} was {kept}, and is {given} from iteration " + str(start) + " on"
    changes = [change for change in config_differences(now, kept) if not change.key.endswith("output_dir")]
    log_differences(template, changes)


def _check_same_optimizer(cfg: DictConfig, kept: DictConfig, path: str) -> None:
    now, before = (targets(config.optimizer) for config in (cfg, kept))
    if now != before:
        raise ValueError(
            f"the optimizer is {', '.join(sorted(now))}, in {path} it was {', '.join(sorted(before))}: "
            "resume with that one, or start a new run from its weights, with train.init_checkpoint"
        )
