"""A PIIP-LLaVA of random weights that a CPU can train in minutes, and a tokenizer of words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from .auto import PIIPLlavaConfig, PIIPLlavaForConditionalGeneration, PIIPLlavaProcessor, PIIPVisionConfig
from .conversation import TEMPLATES

__all__ = ["small_model", "word_tokenizer"]

_WORDS = Regex(r"\w+|[^\w\s]|\n")


def word_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are the words and marks of these texts, and of the template "short"."""
    template = TEMPLATES["short"]
    pattern = pre_tokenizers.Split(_WORDS, "removed", invert=True)
    said = [template.question.format(""), template.cue, *texts]
    found = {word for text in said for word, _ in pattern.pre_tokenize_str(text)}
    vocabulary = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", "\n", *sorted(found)])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pattern
    return PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", pad_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def _vision(image_size: int) -> PIIPVisionConfig:
    clip: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_layers": 2, "num_heads": 4}
    clip |= {"image_size": image_size // 2, "patch_size": 8, "hidden_act": "gelu"}
    return PIIPVisionConfig(
        branches=[
            {"family": "clip", **clip},
            {"family": "convnext", "dims": [32, 64], "depths": [2, 2], "layer_scale": 1.0},
        ],
        image_sizes=[image_size // 2, image_size],
        stages=[[[0, 0], [1, 1]], [[0, 1], [2, 4]]],
        interaction={"num_heads": 4, "float32_projections": False, "drop_path_rate": 0.0},
    )


def small_model(
    image_size: int, tokenizer: PreTrainedTokenizerFast, seed: int
) -> tuple[PIIPLlavaForConditionalGeneration, PIIPLlavaProcessor]:
    """A CLIP on the image at half its size, a ConvNeXt on all of it, and a Llama of two layers.

    Args:
        image_size: side in pixels, a multiple of 16.
        tokenizer: of the model's words.
        seed: of its weights.

    Returns:
        The model, of a third of a million parameters, and its processor.
    """
    vision = _vision(image_size)
    processor = PIIPLlavaProcessor.of(vision, tokenizer)
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(seed)
    config = PIIPLlavaConfig(
        vision_config=vision, text_config=text, image_token_index=processor.image_token_id
    )
    return PIIPLlavaForConditionalGeneration(config), processor
