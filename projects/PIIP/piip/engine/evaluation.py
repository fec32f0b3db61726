"""Evaluation of a config's model on its test set."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage, has_event_storage
from omegaconf import DictConfig, OmegaConf
from torch import nn

from ..numerics import autocast
from .config import instantiate
from .data.workers import DataError, reason_of
from .distributed.preemption import leave_if_told
from .distributed.sharding import unsharded
from .ema import AverageWeights
from .pictures import Pictures

__all__ = ["check_test_set", "class_names", "evaluate", "evaluate_both", "with_tta"]

_logger = logging.getLogger("detectron2.piip")
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


def check_test_set(cfg: DictConfig) -> None:
    """Read the annotations of the config's test set and build its evaluator, before time goes into training.

    Raises:
        ValueError, OSError, ModuleNotFoundError: what the first evaluation would end with.
    """
    instantiate(OmegaConf.select(cfg, "dataloader.test.dataset"))
    instantiate(cfg.dataloader.evaluator)


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


class TestBatches:
    """A loader that ends between two batches when the process is told to, and fails with `DataError`."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.loader)
        while True:
            leave_if_told()
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (RuntimeError, ValueError, OSError) as error:  # of a worker that died, or of an image
                raise DataError(reason_of(error)) from error
            yield batch


def evaluate(cfg: DictConfig, model: nn.Module, *, subfolder: str = "") -> dict[str, dict[str, float]]:
    """Run the config's evaluator on its test set, in its `train.eval_precision`, and log the results.

    Where the evaluator offers a `renderer()`, the model's output for `train.pictures` images, by default 4,
    is drawn into `predictions` in the output folder.

    Args:
        cfg: a LazyConfig.
        model: on its device.
        subfolder: of the output folder, for the files of this evaluation; "" for the output folder itself.

    Returns:
        Metrics by task, as the evaluator gives them; empty on all but the main process.

    Raises:
        DataError: an image cannot be loaded, or a data worker died.
        Preempted: SIGTERM was received, see `piip.engine.distributed.preemption.watch`.
    """
    loader, evaluation = instantiate(cfg.dataloader.test, "dataloader.test"), cfg.dataloader.evaluator.copy()
    if subfolder and evaluation.get("output_dir"):
        evaluation.output_dir = str(Path(evaluation.output_dir, subfolder))
    evaluator = instantiate(evaluation, "dataloader.evaluator")
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
        for buffer in model.buffers():  # batch norms of several processes see different images in training
            torch.distributed.broadcast(buffer, src=0)
    evaluators = [evaluator]
    if comm.is_main_process() and hasattr(evaluator, "renderer"):
        folder = Path(cfg.train.output_dir, subfolder, "predictions")
        if has_event_storage():
            folder /= f"{get_event_storage().iter:07d}"
        number, tag = cfg.train.get("pictures", 4), str(Path(subfolder, "predictions"))
        evaluators.append(Pictures(evaluator.renderer(), folder, len(loader), number, tag=tag))
    with unsharded(model), autocast(cfg.train.device, cfg.train.get("eval_precision", "float32")):
        model = with_tta(cfg, model)
        results: dict[str, dict[str, float]] = inference_on_dataset(model, TestBatches(loader), evaluators)
    if comm.is_main_process():
        print_csv_format(results)
        if hasattr(evaluator, "summary"):
            _logger.info(evaluator.summary(results))
    return results


def evaluate_both(cfg: DictConfig, model: nn.Module, average: AverageWeights | None) -> dict[str, Any]:
    """:func:`evaluate`, and the same under "ema" with the average of the weights, if one is kept."""
    results: dict[str, Any] = evaluate(cfg, model)
    if average:
        _logger.info("evaluating the average of the weights")
        with average.swapped():
            of_average = evaluate(cfg, model, subfolder="ema")
        if of_average:
            results = {**results, "ema": of_average}
    return results
