"""Training and evaluation of LazyConfigs: Detectron2's loop with bfloat16, exact resumption, clear failure.

What a config may set in `train` beyond Detectron2's fields stands in `piip.engine.settings.TrainSettings`.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import nn

import piip_ops

from ..seeding import mix_seed, seed_all
from .checkpoints.checkpoint import (
    CLASS_NAMES,
    METADATA,
    Checkpointer,
    ClassShapes,
    check_same_classes,
    describe,
)
from .checkpoints.output_folder import follow_move, output_folder
from .checkpoints.sharded_checkpoint import ShardedCheckpointer
from .config import instantiate, load_config, save_config
from .data.custom_data import use_custom_dataset
from .data.loader import TrainLoader
from .distributed.launching import restarted
from .ema import AverageWeights
from .evaluation import check_test_set, class_names, evaluate, with_tta
from .hooks import training_hooks
from .logs.screen import set_up_logs
from .model import build_model, for_prediction, prepare_model
from .nonfinite import NonfiniteGuard
from .optim import scaled_lr
from .run import run
from .settings import TrainSettings
from .start import load_start
from .trainer import Trainer

__all__ = ["Trainer", "build_model", "evaluate", "main", "train", "with_tta"]

_logger = logging.getLogger("detectron2.piip")


def train(cfg: DictConfig, *, resume: bool = False, restartable: ClassShapes | None = None) -> None:
    """Train the config's model, evaluating and saving as it says.

    Args:
        cfg: a LazyConfig with `model`, `optimizer`, `lr_multiplier`, `dataloader` and `train`.
        resume: continue from the last checkpoint in `train.output_dir`, if there is one. On the CPU, with
            `TrainLoader` as `dataloader.train`, the result is bit for bit that of a run that never stopped.
        restartable: parameters that `train.init_checkpoint` may hold for other classes, see `Checkpointer`.

    Raises:
        DataError: there is no next batch; a checkpoint of the last step is there.
        FloatingPointError: a loss or a weight became infinite or NaN.
        KeyboardInterrupt: Ctrl-C, once the log says how to go on.
        Preempted: SIGTERM was received; a checkpoint of the last step is there.
        ValueError: the config or a checkpoint does not fit.
    """
    settings = TrainSettings.of(cfg)
    resume = (resume or restarted()) and Path(cfg.train.output_dir, "last_checkpoint").exists()
    seed = settings.seed if settings.seed >= 0 else comm.shared_random_seed()
    seed_all(mix_seed(seed, 0))  # the first weights: under FSDP each process keeps a part of the same ones
    model, called = prepare_model(
        cfg, settings, weights_follow=resume or bool(cfg.train.init_checkpoint and not restartable)
    )
    _logger.info(f"the model has {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters")
    check_test_set(cfg)
    loader = instantiate(cfg.dataloader.train, "dataloader.train")
    trainer = Trainer(
        called,
        loader,
        _optimizer(cfg, settings, model),
        seed=seed,
        precision=settings.precision,
        float32_heads=settings.float32_heads,
        accumulate=settings.accumulate,
        clip_grad_norm=settings.clip_grad_norm,
        guard=NonfiniteGuard(settings.skip_nonfinite, cfg.train.output_dir),
    )
    average = None
    if settings.ema_decay:
        average = AverageWeights(model, decay=settings.ema_decay, warmup=settings.ema_warmup)
    checkpointer = _checkpointer(cfg, settings, model, trainer, average, restartable)
    trainer.register_hooks(training_hooks(cfg, called, checkpointer, average))
    if not resume:
        cfg.train.seed = seed
    start = load_start(cfg, trainer, checkpointer, average, resume=resume)
    checkpointer.config = save_config(cfg, cfg.train.output_dir)
    _set_position(cfg, trainer, loader, start)
    run(trainer, checkpointer, start, cfg.train.max_iter)
    if skipped := set().union(*comm.all_gather(getattr(loader, "skipped", {}))):
        _logger.warning(f"{len(skipped)} images could not be used: others were trained on in their place")


def _optimizer(cfg: DictConfig, settings: TrainSettings, model: nn.Module) -> torch.optim.Optimizer:
    section = cfg.optimizer.copy()  # the config stays as it was given, and free of weights
    section.lr = scaled_lr(cfg, settings)
    section.params.model = model
    optimizer: torch.optim.Optimizer = instantiate(section, "optimizer")
    return optimizer


def _checkpointer(
    cfg: DictConfig,
    settings: TrainSettings,
    model: nn.Module,
    trainer: Trainer,
    average: AverageWeights | None,
    restartable: ClassShapes | None,
) -> Checkpointer:
    saved: dict[str, Any] = {"trainer": trainer, **({"ema": average} if average else {})}
    saved |= {"metadata": class_names(cfg), "restartable": restartable}
    if settings.parallel == "fsdp":
        saved["max_to_keep"] = cfg.train.checkpointer.get("max_to_keep")
        return ShardedCheckpointer(model, cfg.train.output_dir, **saved)
    return Checkpointer(model, cfg.train.output_dir, **saved)


def _set_position(cfg: DictConfig, trainer: Trainer, loader: Any, start: int) -> None:
    """Let the loader continue with the batch of an iteration."""
    if isinstance(loader, TrainLoader):
        loader.device = trainer.device
        loader.set_position(trainer.seed, start)
        epochs = cfg.train.max_iter * cfg.dataloader.train.total_batch_size / loader.num_images
        _logger.info(
            f"train.max_iter={cfg.train.max_iter} is {epochs:.1f} epochs of {loader.num_images} images"
        )
    elif start:
        _logger.warning(
            "dataloader.train is not a piip.engine.data.TrainLoader: the order of the images starts again"
        )


def main(args: argparse.Namespace) -> None:
    """What `tools/lazyconfig_train_net.py` does in each process.

    Args:
        args: its arguments.
    """
    if args.eval_only:
        _evaluate(args)
        return
    cfg = load_config(args.config_file, args.opts)
    folder = cfg.train.output_dir
    with output_folder(folder, resume=args.resume or restarted()) as message:
        cfg.train.init_checkpoint = follow_move(cfg.train.init_checkpoint, folder)
        set_up_logs(folder)
        if message:
            _logger.warning(message)
        restartable = _use_data(cfg, args)
        train(cfg, resume=args.resume, restartable=restartable)


def _use_data(cfg: DictConfig, args: argparse.Namespace) -> ClassShapes:
    operator = ", ".join(f"{key}: {value}" for key, value in piip_ops.build_info().items())
    _logger.info(f"Attention operator: {operator}")
    restartable = use_custom_dataset(cfg, args.data, train=not args.eval_only)
    if args.data:
        (classes,) = (names for key, names in class_names(cfg).items() if key in CLASS_NAMES)
        fitted = f"the head is fitted to {describe(classes)}: {', '.join(restartable)}"
        _logger.info(f"data: {', '.join(args.data)}; {fitted}")
    return restartable


def _evaluate(args: argparse.Namespace) -> None:
    weights = ""  # the config's train.init_checkpoint
    if args.resume:
        folder = load_config(args.config_file, args.opts).train.output_dir
        weights = Checkpointer(nn.Module(), folder).get_checkpoint_file()
    cfg = load_config(args.config_file, args.opts, weights=weights)
    set_up_logs(cfg.train.output_dir)
    _use_data(cfg, args)
    model = build_model(cfg)
    checkpointer = Checkpointer(model, cfg.train.output_dir, metadata=class_names(cfg))
    loaded = checkpointer.load(weights or cfg.train.init_checkpoint)
    check_same_classes(loaded.get(METADATA, {}), class_names(cfg))
    evaluate(cfg, for_prediction(cfg, model))
