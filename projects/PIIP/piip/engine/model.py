"""From a config to the model that is trained or evaluated."""

from __future__ import annotations

import torch
from detectron2.config import instantiate
from omegaconf import DictConfig
from torch import nn

from ..inference import optimize_for_inference
from ..numerics import dtype_of

__all__ = ["build_model", "for_prediction"]


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


def for_prediction(cfg: DictConfig, model: nn.Module) -> nn.Module:
    """A loaded model as it evaluates and predicts: on a CPU optimised for `train.eval_precision`."""
    if torch.device(cfg.train.device).type == "cpu":
        optimize_for_inference(model, dtype_of(cfg.train.get("eval_precision", "float32")))
    return model.eval()
