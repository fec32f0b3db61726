"""LLaVA's data format: a JSON list of conversations, some about an image in a folder."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from ..images import UnreadableFileError, open_image, printable
from .conversation import IGNORED, tokenize
from .processing import IMAGE_TOKEN, PIIPLlavaProcessor

__all__ = ["Collator", "Conversations", "ModalitySampler", "read_conversations"]

_logger = logging.getLogger(__name__)
_PRIME = 7919  # step to a replacement, so that neighbours in the file are not taken again and again


def read_conversations(file: str | Path) -> list[dict[str, Any]]:
    """The entries of a file in LLaVA's format.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no list of conversations; the first wrong entry is named.
    """
    try:
        entries = json.loads(Path(file).read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is no json: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{file} holds no list of conversations")
    for number, entry in enumerate(entries):
        turns = entry.get("conversations") if isinstance(entry, dict) else None
        if not isinstance(turns, list) or len(turns) < 2 or not all(isinstance(turn, dict) for turn in turns):
            raise ValueError(
                f'{file}: entry {number} has no conversation: expected "conversations": '
                '[{"from": "human", "value": ...}, {"from": "gpt", "value": ...}, ...]'
            )
        places = sum(str(turn.get("value")).count(IMAGE_TOKEN) for turn in turns)
        if places != int("image" in entry):
            raise ValueError(
                f"{file}: entry {number} has {places} {IMAGE_TOKEN} and {int('image' in entry)} images: "
                "expected one for its image"
            )
    return entries


class Conversations(Dataset[dict[str, Any]]):
    """Conversations ready to be trained on.

    An image that cannot be read is named once in the log, and another entry, chosen by the index alone, takes
    its place.

    Args:
        entries: see :func:`read_conversations`.
        images: folder that the paths of images start from.
        processor: that of the model.
        template: one of :data:`piip.multimodal.conversation.TEMPLATES`.
        max_length: maximum number of tokens of a conversation, which is cut there.
        pad: see :class:`piip.multimodal.PIIPImageProcessor`.
    """

    def __init__(
        self,
        entries: Sequence[Mapping[str, Any]],
        images: str | Path,
        processor: PIIPLlavaProcessor,
        *,
        template: str,
        max_length: int = 2048,
        pad: bool = True,
    ) -> None:
        self.entries, self.images, self.processor = entries, Path(images), processor
        self.template, self.max_length, self.pad = template, max_length, pad
        self._named: set[str] = set()

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def lengths(self) -> list[int]:
        """Words of each conversation, negative where it has no image."""
        words = (sum(len(turn["value"].split()) for turn in e["conversations"]) for e in self.entries)
        return [n if "image" in entry else -n for n, entry in zip(words, self.entries, strict=True)]

    def _pixels(self, name: str) -> Tensor | None:
        try:
            image = open_image(self.images / name)
            prepared = self.processor.image_processor(image, do_pad=self.pad, return_tensors="pt")
        except ValueError as error:
            if name not in self._named:
                self._named.add(name)
                reason = error.reason if isinstance(error, UnreadableFileError) else error
                _logger.warning(f"image {printable(self.images / name)} is skipped: {reason}")
            return None
        pixels: Tensor = prepared["pixel_values"][0]
        return pixels

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``input_ids`` and ``labels``, and ``pixel_values`` ``(3, S, S)`` where there is an image.

        Raises:
            ValueError: a conversation cannot be written out, or none of twenty images in a row can be read.
        """
        for attempt in range(20):
            number = (index + attempt * _PRIME) % len(self.entries)
            entry = self.entries[number]
            pixels = self._pixels(entry["image"]) if "image" in entry else None
            if pixels is None and "image" in entry:
                continue
            try:
                tokens: dict[str, Any] = tokenize(
                    self.processor.tokenizer,
                    entry["conversations"],
                    self.template,
                    tokens_per_image=self.processor.tokens_per_image,
                    max_length=self.max_length,
                )
            except ValueError as error:
                raise ValueError(f"entry {number} of the data: {error}") from error
            return tokens if pixels is None else {**tokens, "pixel_values": pixels}
        raise ValueError(f"twenty images in a row cannot be read below {self.images}: check the folder")


class Collator:
    """Batches conversations, padded on the right.

    Args:
        pad_id: the padding token. It gets no attention and no loss.
    """

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """``input_ids``, ``labels``, ``attention_mask`` ``(B, L)``, and ``pixel_values`` of all images."""
        longest = max(len(sample["input_ids"]) for sample in samples)

        def padded(key: str, value: int) -> Tensor:
            return torch.tensor([s[key] + [value] * (longest - len(s[key])) for s in samples])

        ones = [[1] * len(sample["input_ids"]) for sample in samples]
        batch = {
            "input_ids": padded("input_ids", self.pad_id),
            "labels": padded("labels", IGNORED),
            "attention_mask": torch.tensor([one + [0] * (longest - len(one)) for one in ones]),
        }
        if pixels := [sample["pixel_values"] for sample in samples if "pixel_values" in sample]:
            batch["pixel_values"] = torch.stack(pixels)
        return batch


class ModalitySampler(Sampler[int]):
    """Batches of conversations of similar length, either all with images or all without, in random order.

    Args:
        lengths: see :attr:`Conversations.lengths`.
        batch_size: samples per batch over all ranks.
        generator: decides the order.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, generator: torch.Generator) -> None:
        self.lengths, self.batch_size, self.generator = lengths, batch_size, generator

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        full: list[list[int]] = []
        left: list[int] = []
        for with_image in (True, False):
            own = [i for i, length in enumerate(self.lengths) if (length > 0) == with_image]
            lengths = [abs(self.lengths[i]) for i in own]
            order = (
                get_length_grouped_indices(lengths, self.batch_size, generator=self.generator) if own else []
            )
            end = len(order) - len(order) % self.batch_size
            full += [
                [own[i] for i in order[first : first + self.batch_size]]
                for first in range(0, end, self.batch_size)
            ]
            left += [own[i] for i in order[end:]]
        for number in torch.randperm(len(full), generator=self.generator).tolist():
            yield from full[number]
        yield from left
