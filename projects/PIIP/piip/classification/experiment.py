"""Training and evaluation of classifiers as a LazyConfig says: what `tools/train_classifier.py` does.

This module and the trainer need Detectron2, whose LazyConfig all configs are, and whose loop the engine's is.

A config has
    model: a :class:`~piip.classification.classifier.PIIPClassifier`.
    dataloader.train, dataloader.test: calls of `timm.data.create_loader` on `timm.data.create_dataset`. The
        batch, what only timm's prefetcher needs and which of them is for training are filled in here.
    mixup, loss, optimizer, lr_scheduler: timm's, without what only a run knows (model, iterations an epoch).
    train: `plan` (:class:`~piip.classification.trainer.Plan`), `total_batch_size`, `device`, `seed` (drawn
        where it is negative), `init_checkpoint`, `ema` (`timm.utils.ModelEmaV3` or null).
"""

from __future__ import annotations

import inspect
import logging
from functools import partial
from typing import Any

import torch
from detectron2.utils import comm
from omegaconf import DictConfig
from timm.data import create_transform
from timm.data.readers.img_extensions import set_img_extensions
from timm.data.readers.reader_image_folder import ReaderImageFolder
from timm.utils import setup_default_logging
from timm.utils.distributed import init_distributed_device_so
from torch import nn

import piip_ops

from ..engine.checkpoints.checkpoint import METADATA, check_same_classes
from ..engine.checkpoints.output_folder import follow_move, output_folder
from ..engine.config import instantiate, locate, save_config
from ..engine.distributed.launching import restarted
from ..engine.ema import AverageWeights
from ..engine.evaluation import TestBatches
from ..engine.saved_config import dump, parse, targets
from ..engine.start import kept_config, log_changes
from ..images import IMAGE_SUFFIXES, list_files
from ..seeding import mix_seed, seed_all
from .checkpoint import CLASSES, ClassifierCheckpointer
from .classifier import PIIPClassifier
from .data import (
    Processes,
    TrainBatches,
    class_names,
    evaluation_batches,
    leave_out_strays,
    warn_of_shared_images,
)
from .evaluation import evaluate
from .predict import ClassPredictor, ClassRenderer, describe
from .pretrained import load_pretrained_classifier
from .trainer import Trainer

__all__ = ["Run", "build_classifier_of", "classifier_to_show", "is_classifier"]

_logger = logging.getLogger("piip.classification")


def build_classifier_of(cfg: DictConfig, device: str | torch.device) -> PIIPClassifier:
    """The config's classifier on a device.

    Raises:
        ValueError: it is no classifier.
    """
    _check_classifier(cfg)
    model: PIIPClassifier = instantiate(cfg.model)
    return model.to(device)


def _check_classifier(cfg: DictConfig) -> None:
    if not is_classifier(cfg):
        raise ValueError(
            f"the config's model is {cfg.model.get('_target_')}, expected a PIIPClassifier: detectors and "
            "segmentors are trained with tools/lazyconfig_train_net.py"
        )


def is_classifier(cfg: DictConfig) -> bool:
    """Whether a config's model is a classifier, without building it."""
    target = cfg.model.get("_target_")
    return (locate(target) if isinstance(target, str) else target) is PIIPClassifier


def classifier_to_show(cfg: DictConfig, weights: str) -> tuple[ClassPredictor, ClassRenderer]:
    """A trained classifier and what draws its answers, for `piip.engine.prediction.predict.predict`.

    Args:
        cfg: the config; its model follows the number of classes of the weights.
        weights: a checkpoint of ours, or a released one.

    Raises:
        FileNotFoundError, ValueError: there are no such weights, or they do not fit.
    """
    cfg.model.num_classes = ClassifierCheckpointer(nn.Module()).num_classes(weights)
    device, _ = _device(cfg.train.device)
    model = build_classifier_of(cfg, device)
    loaded = ClassifierCheckpointer(model).load(weights, [])
    test = cfg.dataloader.test
    taken = inspect.signature(create_transform).parameters
    settings = {key: test[key] for key in test if key in taken}
    transform = create_transform(**settings, is_training=False)
    names = describe(loaded.get(METADATA, {}).get(CLASSES, []), model.num_classes)
    return ClassPredictor(model, transform, cfg.train.eval_precision), ClassRenderer(names)


def _device(name: str) -> tuple[str, Processes]:
    """The device of this process, and the processes that torchrun or Slurm started."""
    kind = name.partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"train.device is '{name}': use cpu, cuda or cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"train.device is '{name}' but PyTorch finds no GPU: add train.device=cpu")
    found = init_distributed_device_so(device=name)
    return found["device"], Processes(found["global_rank"], found["world_size"])


class Run:
    """One run of a config, in this process.

    Args:
        cfg: the config; it is changed.
        data: a folder or tar file in the place of the config's data, whose classes the model follows.

    Raises:
        ValueError: the config does not fit the processes, or the model the data.
        FileNotFoundError: the data are not there.
    """

    def __init__(self, cfg: DictConfig, data: str | None = None) -> None:
        _check_classifier(cfg)
        self.cfg = cfg
        self.device, self.processes = _device(cfg.train.device)
        if self.processes.rank == 0 and not logging.root.handlers:
            setup_default_logging()
        total = cfg.train.total_batch_size
        if total < 1 or total % self.processes.count:
            raise ValueError(
                f"total_batch_size {total} must be a positive multiple of {self.processes.count} processes"
            )
        self.batch_size = total // self.processes.count
        self.follows_data = data is not None
        if data is not None:
            cfg.dataloader.train.dataset.root = data
        operator = ", ".join(f"{key}: {value}" for key, value in piip_ops.build_info().items())
        _logger.info(f"attention operator: {operator}")

    def _loader(self, split: str, seed: int) -> Any:
        settings = self.cfg.dataloader[split].copy()
        training = split == "train"
        settings.dataset.update(is_training=training, batch_size=self.batch_size, seed=seed)
        settings.update(
            is_training=training,
            batch_size=self.batch_size,
            use_prefetcher=False,
            pin_memory=self.device != "cpu",
        )
        root = settings.dataset.get("root")
        set_img_extensions(sorted(IMAGE_SUFFIXES))
        try:
            loader = instantiate(settings)
        except (AssertionError, RuntimeError) as error:  # of timm, where there are no data
            reason = str(error) or "it does not exist"
            raise FileNotFoundError(
                f"the {split} set at {root} cannot be read ({reason}): see dataloader.{split}.dataset"
            ) from error
        leave_out_strays(loader.dataset)
        reader = getattr(loader.dataset, "reader", None)
        if self.processes.rank == 0 and isinstance(reader, ReaderImageFolder):
            list_files(reader.root, recursive=True)  # says what is left out
        return loader

    def _follow(self, names: list[str]) -> None:
        """Make the model one for the data's classes, or see that it is."""
        own = self.cfg.model.num_classes
        if names and len(names) != own:
            if not self.follows_data:
                raise ValueError(
                    f"the data have {len(names)} classes, the model {own}: add "
                    f"model.num_classes={len(names)}, or give the data as --data"
                )
            self.cfg.model.num_classes = len(names)

    def _load(self, checkpointer: ClassifierCheckpointer) -> None:
        """Start from `train.init_checkpoint`, its class layers anew where it was trained on other classes."""
        follows = self.follows_data
        checkpointer.restartable = {
            key: (None if follows else len(tensor), *tensor.shape[1:])
            for key, tensor in checkpointer.model.state_dict().items()
            if key.startswith("head.head")
        }
        checkpointer.load(self.cfg.train.init_checkpoint, [])

    def evaluate(self, *, averaged: bool = False) -> dict[str, float]:
        """Measure `train.init_checkpoint` on the test set; `averaged` for the average of weights it keeps."""
        if not self.cfg.train.init_checkpoint:
            raise ValueError("no weights to evaluate: add train.init_checkpoint=MODEL.pth")
        loader = self._loader("test", 0)
        names = class_names(loader.dataset)
        self._follow(names)
        model = build_classifier_of(self.cfg, self.device)
        checkpointer = ClassifierCheckpointer(model, metadata={CLASSES: names})
        checkpointer.averaged = averaged
        loaded = checkpointer.load(self.cfg.train.init_checkpoint, [])
        check_same_classes(loaded.get(METADATA, {}), checkpointer.metadata)
        results = self._measure(evaluation_batches(loader, self.processes), model)
        _logger.info(", ".join(f"{name} {value:.3f}" for name, value in results.items()))
        return results

    def _measure(self, batches: Any, model: nn.Module) -> dict[str, float]:
        precision = self.cfg.train.eval_precision
        results = evaluate(model, TestBatches(batches), precision=precision, processes=self.processes)
        expected = len(batches.dataset) if batches.sampler is None else None
        if expected and expected != results["images"]:
            _logger.warning(f"{results['images']:.0f} images were evaluated, the set has {expected}")
        return results

    def train(self, *, resume: bool = False) -> dict[str, float]:
        """Train as the config says; with `resume` from the last checkpoint of its folder, if there is one."""
        folder, resume = self.cfg.train.plan.output_dir, resume or restarted()
        with output_folder(folder, resume=resume) as message:
            self.cfg.train.init_checkpoint = follow_move(self.cfg.train.init_checkpoint, folder)
            if message:
                _logger.warning(message)
            return self._train(resume)

    def _train(self, resume: bool) -> dict[str, float]:
        cfg = self.cfg
        seed = cfg.train.seed if cfg.train.seed >= 0 else comm.shared_random_seed()
        loader, test_loader = self._loader("train", seed), self._loader("test", seed)
        warn_of_shared_images(loader.dataset, test_loader.dataset)
        names = class_names(loader.dataset)
        if (others := class_names(test_loader.dataset)) and others != names:
            raise ValueError(f"the training set has {len(names)} classes, the test set {len(others)} others")
        self._follow(names)
        batches = TrainBatches(loader, seed=seed, processes=self.processes)
        seed_all(mix_seed(seed))  # the first weights, on every rank the same
        model = build_classifier_of(cfg, self.device)
        now = parse(dump(cfg), trusted=targets(cfg))  # before it is filled in
        trainer = self._trainer(model, batches, seed, names)
        last = trainer.checkpointer.get_checkpoint_file() if resume else ""
        kept = kept_config(last, cfg) if last else None
        if resume and trainer.resume():
            if cfg.train.seed >= 0:
                trainer.loop.seed = seed
            now.train.seed = trainer.loop.seed  # drawn, if not given
            if kept is not None:
                log_changes(now, kept, trainer.iteration)
        else:
            if cfg.train.init_checkpoint:
                self._load(trainer.checkpointer)
            else:
                load_pretrained_classifier(model)
            if trainer.ema is not None:
                trainer.ema.restart()
            now.train.seed = seed
        trainer.checkpointer.config = save_config(now, cfg.train.plan.output_dir)
        _logger.info(
            f"the model has {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters; "
            f"{trainer.plan.epochs} epochs of {len(batches)} iterations, {cfg.train.total_batch_size} images "
            "each"
        )
        return trainer.train(partial(self._measure, evaluation_batches(test_loader, self.processes)))

    def _trainer(self, model: PIIPClassifier, batches: TrainBatches, seed: int, names: list[str]) -> Trainer:
        cfg = self.cfg
        cfg.optimizer.model_or_params = model
        optimizer = instantiate(cfg.optimizer)
        cfg.lr_scheduler.update(optimizer=optimizer, updates_per_epoch=len(batches))
        scheduler, _ = instantiate(cfg.lr_scheduler)
        ema = None
        if cfg.train.ema is not None:
            options = {key: value for key, value in cfg.train.ema.items() if key != "_target_"}
            decay, warmup = options.pop("decay", 0.9999), options.pop("use_warmup", False)  # timm's defaults
            ema = AverageWeights(model, decay=decay, warmup=warmup, **options)
        return Trainer(
            model,
            batches,
            mixup=instantiate(cfg.mixup),
            loss=instantiate(cfg.loss),
            optimizer=optimizer,
            scheduler=scheduler,
            plan=instantiate(cfg.train.plan),
            ema=ema,
            seed=seed,
            processes=self.processes,
            classes=names,
        )
