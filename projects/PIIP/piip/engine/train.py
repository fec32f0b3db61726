"""Training and evaluation of LazyConfigs: Detectron2's loop with bfloat16, exact resumption, clear failure.

Beyond Detectron2's, a config may set in `train`:
    seed: int; what a run draws at random depends on it only. Absent or negative: drawn once, kept in
        checkpoints.
    precision, eval_precision: "float32" (default) or "bfloat16" (autocast; weights and optimizer stay as they
        are).
    tta: evaluate and predict with the test-time augmentation that the config's `tta` describes; false by
        default.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Iterable
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from detectron2.engine import create_ddp_model, default_setup, default_writers, hooks
from detectron2.engine.train_loop import HookBase, SimpleTrainer
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from omegaconf import DictConfig, OmegaConf
from torch import nn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

import piip_ops

from ..weights.pretrained import load_pretrained
from .checkpoint import METADATA, Checkpointer, ClassShapes, check_same_classes
from .config import load_config
from .data import TrainLoader, mix_seed, seed_all
from .own_data import use_own_data

_logger = logging.getLogger("detectron2.piip")
_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def autocast(device: str | torch.device, precision: str) -> torch.autocast:
    """The context to run a model in for a precision named as in the configs.

    Raises:
        ValueError: unknown precision.
    """
    if precision not in _PRECISIONS:
        raise ValueError(f"precision '{precision}' is not supported: use one of {', '.join(_PRECISIONS)}")
    dtype = _PRECISIONS[precision]
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=dtype != torch.float32)


class Trainer(SimpleTrainer):
    """Detectron2's `SimpleTrainer` on any device and in bfloat16, with steps that repeat bit for bit.

    What a step draws at random (drop path, sampling of anchors and proposals) depends on (seed, rank,
    iteration) only, so nothing but the seed has to be kept in checkpoints, and evaluation between steps
    changes nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Any],
        optimizer: torch.optim.Optimizer,
        *,
        seed: int,
        precision: str = "float32",
    ) -> None:
        """
        Args:
            model: takes a batch, returns a dict of losses (0-dim tensors).
            data_loader: endless batches.
            optimizer: of the model's parameters.
            seed: of this run, in [0, 2**32); the same on all ranks. `load_state_dict` replaces it.
            precision: "float32" or "bfloat16".
        """
        super().__init__(model, data_loader, optimizer)
        self.seed, self.precision = seed, precision
        self.device = next(model.parameters()).device

    def run_step(self) -> None:
        """One iteration.

        Raises:
            FloatingPointError: a loss is infinite or NaN; the weights are as the last step left them.
        """
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        seed_all(mix_seed(self.seed, comm.get_rank(), self.iter))
        try:
            with autocast(self.device, self.precision):
                losses: dict[str, torch.Tensor] = self.model(batch)
        except FloatingPointError as error:  # Detectron2's proposals notice before there is a loss
            raise self._diverged(str(error).rstrip(".")) from error
        total = torch.stack([loss.float() for loss in losses.values()]).sum()
        if not torch.isfinite(total):
            values = ", ".join(f"{name} {loss.item():g}" for name, loss in losses.items())
            raise self._diverged(f"loss is not finite, {values}")
        self.optimizer.zero_grad()
        total.backward()
        self.after_backward()
        self._write_metrics(losses, data_time)
        self.optimizer.step()

    def _diverged(self, reason: str) -> FloatingPointError:
        return FloatingPointError(
            f"training diverged at iteration {self.iter} ({reason}): it stops, checkpoints stay as they are; "
            "lower optimizer.lr or look at the data"
        )

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = super().state_dict()
        return {**state, "seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.seed = state_dict["seed"]


class LiveLine(HookBase):
    """One line on a terminal that says how far training is; elsewhere nothing. Logs are printed above it."""

    def before_train(self) -> None:
        self._bar = tqdm(
            total=self.trainer.max_iter,
            initial=self.trainer.start_iter,
            unit="it",
            desc="training",
            disable=None,  # unless stderr is a terminal
            dynamic_ncols=True,
        )
        handlers = [name for name in ("detectron2", "fvcore") if logging.getLogger(name).handlers]
        self._logs = logging_redirect_tqdm([logging.getLogger(name) for name in handlers])
        if not self._bar.disable:
            self._logs.__enter__()

    def after_step(self) -> None:
        if not self._bar.disable:
            loss, _ = self.trainer.storage.latest()["total_loss"]
            self._bar.set_postfix_str(f"loss {loss:.3g}", refresh=False)
            self._bar.update()

    def after_train(self) -> None:
        if not self._bar.disable:
            self._logs.__exit__(None, None, None)
        self._bar.close()


def build_model(cfg: DictConfig) -> nn.Module:
    """The config's model on the config's device.

    Raises:
        ValueError: the device is not there.
    """
    try:
        device = torch.device(cfg.train.device)
    except RuntimeError as error:
        raise ValueError(f"train.device is '{cfg.train.device}': use cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"train.device is '{device}' but PyTorch finds no GPU: add train.device=cpu")
    model: nn.Module = instantiate(cfg.model)
    return model.to(device)


_CLASSES = (
    "thing_classes",
    "thing_colors",
    "thing_dataset_id_to_contiguous_id",
    "stuff_classes",
    "stuff_colors",
    "ignore_label",
)


def class_names(cfg: DictConfig) -> dict[str, Any]:
    """What Detectron2's catalog knows of the classes of the config's test set, for checkpoints to keep."""
    names = OmegaConf.select(cfg, "dataloader.test.dataset.names")
    if not names:
        return {}
    known = MetadataCatalog.get(names if isinstance(names, str) else names[0]).as_dict()
    return {key: known[key] for key in _CLASSES if known.get(key) is not None}


def with_tta(cfg: DictConfig, model: nn.Module) -> nn.Module:
    """The model, in the test-time augmentation that the config asks for, if it does.

    Raises:
        ValueError: the config knows no test-time augmentation for its model.
    """
    if not cfg.train.get("tta", False):
        return model
    if "tta" not in cfg:
        raise ValueError(
            "train.tta=True, but the config has no `tta` that says how, see configs/common/tta.py"
        )
    settings = cfg.tta.copy()
    settings.model = model
    wrapped: nn.Module = instantiate(settings)
    return wrapped.eval()


def evaluate(cfg: DictConfig, model: nn.Module) -> dict[str, dict[str, float]]:
    """Run the config's evaluator on its test set, in its `train.eval_precision`, and log the results.

    Returns:
        Metrics by task, as the evaluator gives them; empty on all but the main process.
    """
    loader, evaluator = instantiate(cfg.dataloader.test), instantiate(cfg.dataloader.evaluator)
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
        for buffer in model.buffers():  # batch norms of several processes see different images in training
            torch.distributed.broadcast(buffer, src=0)
    model = with_tta(cfg, model)
    with autocast(cfg.train.device, cfg.train.get("eval_precision", "float32")):
        results: dict[str, dict[str, float]] = inference_on_dataset(model, loader, evaluator)
    if comm.is_main_process():
        print_csv_format(results)
        if hasattr(evaluator, "summary"):
            _logger.info(evaluator.summary(results))
    return results


def train(cfg: DictConfig, *, resume: bool = False, restartable: ClassShapes | None = None) -> None:
    """Train the config's model, evaluating and saving as it says.

    Args:
        cfg: a LazyConfig with `model`, `optimizer`, `lr_multiplier`, `dataloader` and `train`.
        resume: continue from the last checkpoint in `train.output_dir`, if there is one. On the CPU, with
            `TrainLoader` as `dataloader.train`, the result is bit for bit that of a run that never stopped.
        restartable: parameters that `train.init_checkpoint` may hold for other classes, see `Checkpointer`.

    Raises:
        FloatingPointError: a loss or a weight became infinite or NaN.
        KeyboardInterrupt: Ctrl-C, once the log says how to go on.
        ValueError: the config or a checkpoint does not fit.
    """
    if cfg.train.get("amp", {}).get("enabled", False):
        raise ValueError(
            "train.amp.enabled (float16) is not supported: set train.precision='bfloat16' instead"
        )
    seed = cfg.train.get("seed", -1)
    seed = seed if seed >= 0 else comm.shared_random_seed()
    seed_all(mix_seed(seed, comm.get_rank()))  # the first weights
    model = build_model(cfg)
    _logger.info(f"the model has {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters")
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    loader = instantiate(cfg.dataloader.train)
    # DDP takes no device ids on the CPU, where Detectron2 would still pass the local rank.
    on_cpu = {"device_ids": None} if torch.device(cfg.train.device).type == "cpu" else {}
    model = create_ddp_model(model, **cfg.train.get("ddp", {}), **on_cpu)
    trainer = Trainer(
        model,
        loader,
        optimizer,
        seed=seed,
        precision=cfg.train.get("precision", "float32"),
    )
    checkpointer = Checkpointer(
        model, cfg.train.output_dir, metadata=class_names(cfg), restartable=restartable, trainer=trainer
    )
    main_process = comm.is_main_process()
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer) if main_process else None,
            hooks.EvalHook(cfg.train.eval_period, lambda: evaluate(cfg, model)),
            hooks.PeriodicWriter(
                default_writers(cfg.train.output_dir, cfg.train.max_iter), period=cfg.train.log_period
            )
            if main_process
            else None,
            LiveLine() if main_process else None,
        ]
    )
    resumed = resume and checkpointer.has_checkpoint()
    if resumed:
        checkpointer.restartable = {}  # this run's own class layers
    elif not cfg.train.init_checkpoint:
        load_pretrained(model)  # on every rank, from the one download
    loaded = checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=resume)
    if resumed:
        check_same_classes(loaded.get(METADATA, {}), checkpointer.metadata)
    start = trainer.iter + 1 if resumed else 0
    if isinstance(loader, TrainLoader):
        loader.set_position(trainer.seed, start)
        epochs = cfg.train.max_iter * cfg.dataloader.train.total_batch_size / loader.num_images
        _logger.info(
            f"train.max_iter={cfg.train.max_iter} is {epochs:.1f} epochs of {loader.num_images} images"
        )
    elif start:
        _logger.warning(
            "dataloader.train is not a piip.engine.data.TrainLoader: the order of the images starts anew"
        )
    try:
        trainer.train(start, cfg.train.max_iter)
        if skipped := set().union(*comm.all_gather(getattr(loader, "skipped", {}))):
            _logger.warning(f"{len(skipped)} images could not be used: others were trained on in their place")
    except KeyboardInterrupt:
        last = checkpointer.get_checkpoint_file()
        way_on = f"--resume continues from {last}" if last else "no checkpoint was saved yet"
        _logger.error(f"interrupted at iteration {trainer.iter}: {way_on}")
        raise


def main(args: argparse.Namespace) -> None:
    """What `tools/lazyconfig_train_net.py` does in each process.

    Args:
        args: Detectron2's default arguments, and `data`: what describes one's own data, if anything.
    """
    cfg = load_config(args.config_file, args.opts)
    restartable = use_own_data(cfg, args.data, train=not args.eval_only)
    default_setup(cfg, args)  # logs Detectron2's environment report, which the next line completes
    _logger.info("Attention operator: %s", ", ".join(f"{k}: {v}" for k, v in piip_ops.build_info().items()))
    if args.data:
        _logger.info(f"data: {', '.join(args.data)}; {len(restartable)} tensors follow their classes")
    if not args.eval_only:
        train(cfg, resume=args.resume, restartable=restartable)
        return
    model = build_model(cfg)
    checkpointer = Checkpointer(model, cfg.train.output_dir)
    loaded = checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=args.resume)
    check_same_classes(loaded.get(METADATA, {}), class_names(cfg))
    evaluate(cfg, model)
