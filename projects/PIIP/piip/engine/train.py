"""Training and evaluation of LazyConfigs: Detectron2's loop with bfloat16, exact resumption, clear failure.

What a config may set in `train` beyond Detectron2's fields stands in `piip.engine.settings.TrainSettings`.
"""

from __future__ import annotations

import argparse
import logging
import os
from typing import Any

from detectron2.config import instantiate
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig

import piip_ops

from ..seeding import mix_seed, seed_all
from ..weights.files.atomic import remove_partial
from ..weights.pretrained import load_pretrained
from .checkpoints.checkpoint import (
    CLASS_NAMES,
    METADATA,
    Checkpointer,
    ClassShapes,
    check_same_classes,
    describe,
)
from .checkpoints.run_lock import run_lock
from .checkpoints.sharded_checkpoint import ShardedCheckpointer
from .config import load_config
from .data.custom_data import use_custom_dataset
from .data.loader import TrainLoader
from .distributed.launching import restarted
from .distributed.sharding import is_sharded, load_pretrained_parts
from .ema import AverageWeights
from .evaluation import check_test_set, class_names, evaluate, with_tta
from .hooks import training_hooks
from .model import build_model, for_prediction, prepare_model
from .nonfinite import NonfiniteGuard
from .optim import scale_lr
from .run import run
from .settings import TrainSettings
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
    if cfg.train.get("amp", {}).get("enabled", False):
        raise ValueError(
            "train.amp.enabled (float16) is not supported: set train.precision='bfloat16' instead"
        )
    settings = TrainSettings.of(cfg)
    check_test_set(cfg)
    resume = resume or restarted()
    seed = settings.seed if settings.seed >= 0 else comm.shared_random_seed()
    seed_all(mix_seed(seed, 0))  # the first weights: under FSDP each process keeps a part of the same ones
    goes_on = resume and os.path.exists(os.path.join(cfg.train.output_dir, "last_checkpoint"))
    model, called = prepare_model(
        cfg, settings, weights_follow=goes_on or bool(cfg.train.init_checkpoint and not restartable)
    )
    _logger.info(f"the model has {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters")
    scale_lr(cfg, settings)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    loader = instantiate(cfg.dataloader.train)
    trainer = Trainer(
        called,
        loader,
        optimizer,
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
    saved: dict[str, Any] = {"trainer": trainer, **({"ema": average} if average else {})}
    saved |= {"metadata": class_names(cfg), "restartable": restartable}
    if settings.parallel == "fsdp":
        keep = cfg.train.checkpointer.get("max_to_keep")
        checkpointer: Checkpointer = ShardedCheckpointer(
            model, cfg.train.output_dir, max_to_keep=keep, **saved
        )
    else:
        checkpointer = Checkpointer(model, cfg.train.output_dir, **saved)
    trainer.register_hooks(training_hooks(cfg, called, checkpointer, average))
    resumed = resume and checkpointer.has_checkpoint()
    if resumed:
        checkpointer.restartable = {}  # this run's own class layers
    elif not cfg.train.init_checkpoint:
        # on every rank, from the one download
        (load_pretrained_parts if is_sharded(model) else load_pretrained)(model)
    loaded = checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=resume)
    if average and not resumed:
        average.restart()  # from the weights that training starts with
    if resumed:
        check_same_classes(loaded.get(METADATA, {}), checkpointer.metadata)
    start = trainer.iter + 1 if resumed else 0
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
    run(trainer, checkpointer, start, cfg.train.max_iter)
    if skipped := set().union(*comm.all_gather(getattr(loader, "skipped", {}))):
        _logger.warning(f"{len(skipped)} images could not be used: others were trained on in their place")


def main(args: argparse.Namespace) -> None:
    """What `tools/lazyconfig_train_net.py` does in each process.

    Args:
        args: Detectron2's default arguments, and `data`: what describes a custom dataset, if anything.
    """
    cfg = load_config(args.config_file, args.opts)
    if args.eval_only or not comm.is_main_process():
        _run(cfg, args)
        return
    with run_lock(cfg.train.output_dir):
        remove_partial(cfg.train.output_dir)
        _run(cfg, args)


def _run(cfg: DictConfig, args: argparse.Namespace) -> None:
    setup_logger(cfg.train.output_dir, distributed_rank=comm.get_rank())  # the data may have something to say
    restartable = use_custom_dataset(cfg, args.data, train=not args.eval_only)
    default_setup(cfg, args)  # logs Detectron2's environment report, which the next line completes
    _logger.info("Attention operator: %s", ", ".join(f"{k}: {v}" for k, v in piip_ops.build_info().items()))
    if args.data:
        (classes,) = (names for key, names in class_names(cfg).items() if key in CLASS_NAMES)
        fitted = f"the head is fitted to {describe(classes)}: {', '.join(restartable)}"
        _logger.info(f"data: {', '.join(args.data)}; {fitted}")
    if not args.eval_only:
        train(cfg, resume=args.resume, restartable=restartable)
        return
    model = build_model(cfg)
    checkpointer = Checkpointer(model, cfg.train.output_dir, metadata=class_names(cfg))
    loaded = checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=args.resume)
    check_same_classes(loaded.get(METADATA, {}), class_names(cfg))
    evaluate(cfg, for_prediction(cfg, model))
