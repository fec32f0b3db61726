"""Turn conversations in LLaVA's format into the text that a model is trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .processing import IMAGE_TOKEN, encode

__all__ = ["IGNORED", "TEMPLATES", "Template", "prompt", "tokenize"]

IGNORED = -100
"""The label of tokens that are no part of an answer: the loss passes over them."""

_HUMAN, _MODEL = "human", "gpt"  # as the files call them


@dataclass(frozen=True)
class Template:
    """How turns become a text.

    Attributes:
        system: before all turns.
        question: a human turn; ``{}`` is what is said.
        cue: what an answer follows.
        answer: a turn of the model, all of which the loss is on; ``{eos}`` is the tokenizer's end token.
    """

    system: str
    question: str
    cue: str
    answer: str


_VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
TEMPLATES = {
    "vicuna_v1": Template(_VICUNA, "USER: {} ", "ASSISTANT:", " {}{eos}"),
    "short": Template("", "USER: {} ", "ASSISTANT:", " {}{eos}"),
    "plain": Template("", IMAGE_TOKEN, "", "{}\n"),
}
"""``vicuna_v1`` and ``plain`` are those of the released stages 2 and 1; ``short`` has no system sentence."""


def _template(name: str) -> Template:
    if name not in TEMPLATES:
        raise ValueError(f"unknown template '{name}': expected one of {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


def _question(text: str) -> str:
    """The question, with its image first, on a line of its own."""
    images = text.count(IMAGE_TOKEN)
    return f"{IMAGE_TOKEN}\n" * images + text.replace(IMAGE_TOKEN, "").strip()


def _segments(turns: Sequence[Mapping[str, str]], template: Template, eos: str) -> list[tuple[str, bool]]:
    """The text in pieces, and of each whether the loss is on it."""
    pieces = [(template.system, False)]
    for number, turn in enumerate(turns):
        speaker = (_HUMAN, _MODEL)[number % 2]
        if turn.get("from") != speaker or not isinstance(turn.get("value"), str):
            raise ValueError(
                f"turn {number + 1} is from '{turn.get('from')}': expected '{speaker}', with a text as value"
            )
        if speaker == _HUMAN:
            pieces.append((template.question.format(_question(turn["value"])), False))
        else:
            pieces += [(template.cue, False), (template.answer.format(turn["value"], eos=eos), True)]
    return pieces


def prompt(question: str, template: str = "vicuna_v1") -> str:
    """The text that an answer continues, for one question; it has an image where the question names none.

    Raises:
        ValueError: unknown template.
    """
    rules = _template(template)
    if IMAGE_TOKEN not in question:
        question = f"{IMAGE_TOKEN}{question}"
    return rules.system + rules.question.format(_question(question)) + rules.cue


def tokenize(
    tokenizer: Any,
    turns: Sequence[Mapping[str, str]],
    template: str,
    *,
    tokens_per_image: int,
    max_length: int,
) -> dict[str, list[int]]:
    """Tokens of a conversation, with labels on its answers and the end of each.

    Args:
        tokenizer: a fast tokenizer that knows the image token.
        turns: ``{"from": "human" or "gpt", "value": text}`` by turns.
        template: one of :data:`TEMPLATES`.
        tokens_per_image: how many tokens stand for an image.
        max_length: what lies behind is cut off.

    Returns:
        ``input_ids`` and ``labels``, of one length.

    Raises:
        ValueError: turns out of order, or an image that would be cut through.
    """
    pieces = _segments(turns, _template(template), tokenizer.eos_token)
    tokens = encode(tokenizer, "".join(text for text, _ in pieces), tokens_per_image)
    answers: list[tuple[int, int]] = []
    start = 0
    for text, is_answer in pieces:
        if is_answer:
            answers.append((start, start + len(text)))
        start += len(text)
    ids: list[int] = tokens["input_ids"]
    labels = [
        token if any(first < last and first < end and last > begin for begin, end in answers) else IGNORED
        for token, (first, last) in zip(ids, tokens["offset_mapping"], strict=True)
    ]
    image_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    if image_id in ids[max_length:]:
        raise ValueError(
            f"an image lies behind {max_length} tokens: raise max_length, each takes {tokens_per_image}"
        )
    return {"input_ids": ids[:max_length], "labels": labels[:max_length]}
