"""Evaluation of a config's model on its test set."""

from __future__ import annotations

import logging
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from omegaconf import DictConfig, OmegaConf
from torch import nn

from ..numerics import autocast
from .ema import AverageWeights
from .sharding import unsharded

__all__ = ["class_names", "evaluate", "evaluate_both", "with_tta"]

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
    with unsharded(model), autocast(cfg.train.device, cfg.train.get("eval_precision", "float32")):
        model = with_tta(cfg, model)
        results: dict[str, dict[str, float]] = inference_on_dataset(model, loader, evaluator)
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
            of_average = evaluate(cfg, model)
        if of_average:
            results = {**results, "ema": of_average}
    return results
