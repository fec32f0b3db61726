"""From a config to the model that is trained: build, compile, shard. And to the one that predicts."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.engine import create_ddp_model
from omegaconf import DictConfig
from torch import nn

from ..inference import optimize_for_inference
from ..inference.graphs import replay_maps
from ..numerics import dtype_of
from .compilation import compile_blocks
from .config import instantiate
from .distributed.sharding import build_for_sharding, materialise, shard
from .settings import TrainSettings

__all__ = ["build_model", "device_of", "for_prediction", "prepare_model"]


def device_of(cfg: DictConfig) -> torch.device:
    """The device that a config names.

    Raises:
        ValueError: it is not there.
    """
    try:
        device = torch.device(cfg.train.device)
    except RuntimeError as error:
        raise ValueError(f"train.device is '{cfg.train.device}': use cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"train.device is '{device}' but PyTorch finds no GPU: add train.device=cpu")
    return device


def build_model(cfg: DictConfig) -> nn.Module:
    """The config's model on the config's device.

    Raises:
        ValueError: the device is not there.
    """
    device = device_of(cfg)
    model: nn.Module = instantiate(cfg.model, "model")
    return model.to(device)


def for_prediction(cfg: DictConfig, model: nn.Module) -> nn.Module:
    """A loaded model as it evaluates and predicts.

    On a CPU it is optimised for `train.eval_precision`; on a GPU the maps of PIIPs are replayed from CUDA
    graphs, which compute what the model does.
    """
    if torch.device(cfg.train.device).type == "cpu":
        optimize_for_inference(model, dtype_of(cfg.train.get("eval_precision", "float32")))
    else:
        replay_maps(model)
    return model.eval()


def prepare_model(
    cfg: DictConfig, settings: TrainSettings, *, weights_follow: bool
) -> tuple[nn.Module, nn.Module]:
    """The config's model, step by step: build, lay out, compile, shard or replicate, as the settings say.

    Args:
        cfg: a config.
        settings: those of its `train`.
        weights_follow: all weights will come from a checkpoint.

    Returns:
        The model itself, which checkpoints and optimizer know, and what is called in training; under DDP
        these differ.

    Raises:
        ValueError: the device is not there, or the model is not fit for what the settings ask.
    """
    device, sharded = device_of(cfg), settings.parallel == "fsdp"
    model = build_for_sharding(cfg, weights_follow=weights_follow) if sharded else build_model(cfg)
    if settings.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if settings.compile:
        model = compile_blocks(model)
    if sharded:
        model = materialise(shard(model, device, settings.precision), device)
    return model, model if sharded else _data_parallel(cfg, model)


def _data_parallel(cfg: DictConfig, model: nn.Module) -> nn.Module:
    """The model under DDP where there are several processes."""
    # DDP takes no device ids on the CPU, where Detectron2 would still pass the local rank.
    on_cpu: dict[str, Any] = {"device_ids": None} if device_of(cfg).type == "cpu" else {}
    wrapped: nn.Module = create_ddp_model(model, **cfg.train.get("ddp", {}), **on_cpu)
    return wrapped
