"""Ask a PIIP-LLaVA one question, or all questions of a data set with known answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ..images import open_image
from .conversation import prompt
from .modeling import PIIPLlavaForConditionalGeneration
from .processing import IMAGE_TOKEN, PIIPLlavaProcessor

__all__ = ["ask", "score"]


@torch.inference_mode()
def ask(
    model: PIIPLlavaForConditionalGeneration,
    processor: PIIPLlavaProcessor,
    asked: Sequence[tuple[str | Path, str]],
    *,
    template: str = "vicuna_v1",
    max_new_tokens: int = 128,
) -> list[str]:
    """Answer questions about images, greedily, all in one batch.

    Args:
        model, processor: see :func:`piip.multimodal.load`.
        asked: an image's path and a question, each.
        template: that the model was trained with.
        max_new_tokens: of an answer.

    Raises:
        UnreadableFileError: an image is missing, or cannot be decoded.
    """
    inputs = processor(
        images=[open_image(path) for path, _ in asked],
        text=[prompt(question, template) for _, question in asked],
        padding=True,
        return_tensors="pt",
    ).to(model.device)
    tokens = model.eval().generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    answers = processor.tokenizer.batch_decode(
        tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    )
    return [answer.strip() for answer in answers]


def _questions(entries: Sequence[Mapping[str, Any]], images: Path) -> Iterator[tuple[Path, str, str]]:
    """Image, question and known answer of every turn about an image; each is asked without the turns
    before."""
    for entry in entries:
        turns = entry["conversations"]
        for question, answer in zip(turns[::2], turns[1::2], strict=False):
            if "image" in entry:
                yield (
                    images / entry["image"],
                    question["value"].replace(IMAGE_TOKEN, "").strip(),
                    answer["value"],
                )


def score(
    model: PIIPLlavaForConditionalGeneration,
    processor: PIIPLlavaProcessor,
    entries: Sequence[Mapping[str, Any]],
    images: str | Path,
    *,
    template: str,
    batch_size: int = 64,
    max_new_tokens: int = 8,
) -> dict[str, tuple[int, int]]:
    """Answer every question of a data set.

    Args:
        model, processor: see :func:`piip.multimodal.load`.
        entries: see :func:`piip.multimodal.data.read_conversations`.
        images: folder of the images.
        template: that the model was trained with.
        batch_size: questions at a time.
        max_new_tokens: of an answer.

    Returns:
        How many answers are right, word for word, and how many there are: by question, and of "all".
    """
    right: Counter[str] = Counter()
    number: Counter[str] = Counter()
    remaining = _questions(entries, Path(images))
    while batch := list(islice(remaining, batch_size)):
        answers = ask(
            model,
            processor,
            [(path, question) for path, question, _ in batch],
            template=template,
            max_new_tokens=max_new_tokens,
        )
        for (_, question, known), answer in zip(batch, answers, strict=True):
            for name in (question, "all"):
                number[name] += 1
                right[name] += answer.lower() == known.lower()
    return {name: (right[name], number[name]) for name in number}
