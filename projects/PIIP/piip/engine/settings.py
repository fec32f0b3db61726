"""The fields of a config's `train` section that are this project's, beside Detectron2's own."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

__all__ = ["TrainSettings", "complete"]

_CHOICES = {
    "parallel": ("ddp", "fsdp"),
    "log": ("tensorboard", "wandb"),
    "lr_scaling": ("linear", "sqrt"),
}


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """What `train` of a config may hold beyond Detectron2's fields; the defaults change nothing.

    Attributes:
        seed: what a run draws at random depends on it only. Negative: drawn once, kept in checkpoints.
        precision: "float32" or "bfloat16" (autocast; weights and optimizer stay as they are) in training.
        eval_precision: the same in evaluation.
        float32_heads: leave all that follows the backbone (neck, proposals, heads) in float32 in training.
        tta: evaluate and predict with the test-time augmentation that the config's `tta` describes.
        parallel: how several processes share the work. "ddp": each holds the whole model. "fsdp": weights,
            gradients and optimizer are sharded over all, see `piip.engine.distributed.sharding`.
        accumulate: micro-batches per step and process, whose gradients are summed.
            `dataloader.train.total_batch_size` stays the number of images per step.
        clip_grad_norm: maximum gradient norm over all parameters; the norm is logged as "grad_norm". 0
            disables clipping.
        reference_batch_size: batch size that `optimizer.lr` is meant for; the learning rate is scaled where
            `dataloader.train.total_batch_size` is another. 0 disables scaling.
        lr_scaling: by the ratio of the batch sizes, "linear", or by its square root, "sqrt".
        ema_decay: decay of the exponential moving average of the weights, such as 0.9998; it is evaluated and
            saved beside the weights. 0 disables it.
        ema_warmup: let the decay grow towards `ema_decay`, as 1 - (1 + iteration)**(-2/3).
        compile: compile the blocks of branches and interactions, see `piip.engine.compilation`.
        channels_last: keep the weights of convolutions channels-last.
        skip_nonfinite: consecutive steps with an infinite or NaN loss that are skipped.
        pictures: images on which every evaluation draws what the model finds.
        log: "tensorboard", or "wandb" for Weights & Biases beside it; `train.wandb` may then hold arguments
            of `wandb.init`.
    """

    seed: int = -1
    precision: str = "float32"
    eval_precision: str = "float32"
    float32_heads: bool = False
    tta: bool = False
    parallel: str = "ddp"
    accumulate: int = 1
    clip_grad_norm: float = 0.0
    reference_batch_size: int = 0
    lr_scaling: str = "linear"
    ema_decay: float = 0.0
    ema_warmup: bool = False
    compile: bool = False
    channels_last: bool = False
    skip_nonfinite: int = 0
    pictures: int = 4
    log: str = "tensorboard"

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"train.{name} is '{getattr(self, name)}': use one of {', '.join(choices)}")
        if self.accumulate < 1:
            raise ValueError(
                f"train.accumulate is {self.accumulate}: expected a number of micro-batches, at least 1"
            )
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"train.ema_decay is {self.ema_decay}: use 0 for none, or a share below 1")
        for name in ("clip_grad_norm", "reference_batch_size"):
            if getattr(self, name) < 0:
                raise ValueError(f"train.{name} is {getattr(self, name)}: use 0 for none, or more")

    @classmethod
    def of(cls, cfg: DictConfig) -> TrainSettings:
        """Those of a config; what it does not set has its default.

        Raises:
            ValueError: a field has a value of the wrong type, or one that is not supported.
        """
        if cfg.train.get("amp", {}).get("enabled", False):
            raise ValueError(
                "train.amp.enabled (float16) is not supported: set train.precision='bfloat16' instead"
            )
        given = {f.name: cfg.train[f.name] for f in fields(cls) if cfg.train.get(f.name) is not None}
        try:
            settings: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), given))
        except OmegaConfBaseException as error:
            raise ValueError(f"train.{error.full_key}: {str(error).splitlines()[0]}") from error
        assert isinstance(settings, cls)
        return settings


def complete(config: DictConfig) -> DictConfig:
    """Write into `train` of a config, if it has one, the fields that it leaves to their defaults.

    So all of them can be changed from the command line, and stand in the config that a run saves. A config
    whose `train` has a `plan` is a classifier's, which says the same by epochs.
    """
    if isinstance(config.get("train"), DictConfig) and "plan" not in config.train:
        for field in fields(TrainSettings):
            if field.name not in config.train:
                config.train[field.name] = field.default
    return config
