"""Train a PIIP-LLaVA in stages with transformers' Trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from torch.utils.data import DataLoader
from transformers import HfArgumentParser, Trainer, TrainingArguments

from ..workers import start_worker
from .auto import load
from .data import Collator, Conversations, ModalitySampler, read_conversations
from .join import join
from .modeling import PIIPLlavaForConditionalGeneration
from .processing import PIIPLlavaProcessor

__all__ = ["StageSettings", "read_config", "train"]


@dataclass
class StageSettings:
    """What a stage trains, and on which data; all other fields are transformers' TrainingArguments."""

    data: str = field(metadata={"help": "json of conversations in LLaVA's format"})
    images: str = field(metadata={"help": "folder that its images lie in"})
    model: str | None = field(default=None, metadata={"help": "folder of a PIIP-LLaVA to go on with"})
    tower: str | None = field(default=None, metadata={"help": "a released tower, for a new PIIP-LLaVA"})
    language_model: str | None = field(default=None, metadata={"help": "of the new PIIP-LLaVA"})
    trainable: str = field(default="all", metadata={"help": "all, or projector"})
    template: str = field(default="vicuna_v1", metadata={"help": "how conversations are written out"})
    max_length: int = field(default=2048, metadata={"help": "tokens of a conversation"})
    pad_images: bool = field(default=True, metadata={"help": "pad images to squares instead of cropping"})
    group_by_modality: bool = field(default=True, metadata={"help": "batches with images, or without"})

    def __post_init__(self) -> None:
        if self.trainable not in ("all", "projector"):
            raise ValueError(f"trainable is '{self.trainable}': expected 'all' or 'projector'")
        if (self.model is None) == (self.tower is None or self.language_model is None):
            raise ValueError(
                "give either model=, a PIIP-LLaVA to go on with, or tower= and language_model= for a new one"
            )


def read_config(file: str | Path, overrides: Sequence[str] = ()) -> tuple[StageSettings, TrainingArguments]:
    """Settings of a stage from a yaml file, changed by ``key=value``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no yaml of keys and values, a key is unknown or a value is invalid.
    """
    try:
        values = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        changes = [yaml.safe_load(value) for _, _, value in (each.partition("=") for each in overrides)]
    except yaml.YAMLError as error:
        raise ValueError(f"{file} or a change to it is no yaml: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} holds no keys and values")
    for each, value in zip(overrides, changes, strict=True):
        key, sign, _ = each.partition("=")
        if not sign:
            raise ValueError(f"'{each}' is no change to the config: write key=value")
        values[key] = value
    if missing := [key for key in ("data", "images", "output_dir") if values.get(key) is None]:
        raise ValueError(f"{file} names no {', '.join(missing)}: add {missing[0]}=... to the command")
    settings, arguments = HfArgumentParser((StageSettings, TrainingArguments)).parse_dict(values)
    return settings, arguments


def _start_worker(seed: Callable[[int], None], worker: int) -> None:
    start_worker(worker)
    seed(worker)


class _Trainer(Trainer):
    group_by_modality = False

    def get_train_dataloader(self) -> DataLoader[Any]:
        loader: Any = super().get_train_dataloader()
        own = loader.base_dataloader  # accelerate's loader takes batches from this one
        own.worker_init_fn = partial(_start_worker, own.worker_init_fn)
        return cast(DataLoader[Any], loader)

    def _get_train_sampler(self, train_dataset: Conversations | None = None) -> Any:
        dataset = train_dataset or self.train_dataset
        if not self.group_by_modality:
            return super()._get_train_sampler(dataset)
        generator = torch.Generator().manual_seed(
            self.args.seed if self.args.data_seed is None else self.args.data_seed
        )
        together = self.args.train_batch_size * self.args.world_size
        return ModalitySampler(dataset.lengths, together, generator)


def _set_trainable(model: PIIPLlavaForConditionalGeneration, trainable: str, half: bool) -> None:
    """Freeze what is not trained, in half precision where the training uses it; the rest is float32."""
    if trainable == "projector":
        model.requires_grad_(False)
        if half:
            model.bfloat16()
        model.model.multi_modal_projector.requires_grad_(True).float()
    else:
        model.float()
        model.model.vision_tower.tower.freeze_unused()  # loading forgets what was frozen


def train(settings: StageSettings, arguments: TrainingArguments) -> dict[str, float]:
    """Train a stage and save model and processor to ``arguments.output_dir``.

    Where there are checkpoints in it already, training goes on with the last one.

    Returns:
        What the Trainer reports: loss, seconds, samples a second.

    Raises:
        OSError, ValueError: model or data are missing or no good.
    """
    entries = read_conversations(settings.data)
    model: PIIPLlavaForConditionalGeneration
    processor: PIIPLlavaProcessor
    if settings.model is not None:
        model, processor = load(settings.model)
    else:
        frozen_in_half = arguments.bf16 and settings.trainable == "projector"
        dtype = torch.bfloat16 if frozen_in_half else torch.float32
        model, processor = join(str(settings.tower), str(settings.language_model), dtype=dtype)
    _set_trainable(model, settings.trainable, arguments.bf16)
    dataset = Conversations(
        entries,
        settings.images,
        processor,
        template=settings.template,
        max_length=settings.max_length,
        pad=settings.pad_images,
    )
    model.config.use_cache = False
    trainer = _Trainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        data_collator=Collator(processor.tokenizer.pad_token_id),
        processing_class=processor,
    )
    trainer.group_by_modality = settings.group_by_modality
    checkpoints = list(Path(arguments.output_dir).glob("checkpoint-*"))
    result = trainer.train(resume_from_checkpoint=True if checkpoints else None)
    model.config.use_cache = True
    trainer.save_model()
    return dict(result.metrics)
