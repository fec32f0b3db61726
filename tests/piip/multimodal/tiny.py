"""A PIIP-LLaVA small enough for tests, with a tokenizer that needs no download."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from piip.multimodal import (
    PIIPLlavaConfig,
    PIIPLlavaForConditionalGeneration,
    PIIPLlavaProcessor,
    PIIPVisionConfig,
)

WORDS = ("<unk>", "<s>", "</s>", "how", "many", "discs", "?", "one", "two", "USER", "ASSISTANT", ":", "\n")
IMAGE_SIZE = 64


def clip(width: int, layers: int, **options: Any) -> dict[str, Any]:
    """A branch of CLIP, as :class:`PIIPVisionConfig` has it."""
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_layers": layers, "num_heads": 4}
    return {"family": "clip", **sizes, "image_size": 48, "patch_size": 16, **options}


def vision_config(**changes: Any) -> PIIPVisionConfig:
    """A CLIP of 32 channels on 48 px and a ConvNeXt on 64 px whose second stage of blocks crosses its own."""
    settings: dict[str, Any] = {
        "branches": [
            clip(32, 4),
            {"family": "convnext", "dims": [8, 16, 16, 24], "depths": [1, 1, 2, 1]},
        ],
        "image_sizes": [48, IMAGE_SIZE],
        "stages": [[[0, 1], [2, 3]], [[0, 3], [4, 7]]],
        "interaction": {"num_heads": 4, "float32_projections": False},
    }
    return PIIPVisionConfig(**{**settings, **changes})


def tokenizer() -> PreTrainedTokenizerFast:
    """Words and line ends, with Llama's special tokens."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]|\n"), "removed", invert=True)
    special = {"unk_token": "<unk>", "pad_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)


def processor(config: PIIPVisionConfig | None = None) -> PIIPLlavaProcessor:
    """The processor of :func:`llava`."""
    return PIIPLlavaProcessor.of(config or vision_config(), tokenizer())


def llava(vision: PIIPVisionConfig | None = None, *, seed: int = 0) -> PIIPLlavaForConditionalGeneration:
    """The model, its interactions not those of the start, which do nothing."""
    text = LlamaConfig(
        vocab_size=len(WORDS) + 1,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        pad_token_id=0,
    )
    torch.manual_seed(seed)
    model = PIIPLlavaForConditionalGeneration(
        PIIPLlavaConfig(
            vision_config=vision or vision_config(), text_config=text, image_token_index=len(WORDS)
        )
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("ca_gamma", "cffn_gamma")):
                parameter.normal_(std=0.5)
            elif "vision_tower" not in name and parameter.ndim == 2:
                parameter.normal_(std=2 * parameter.shape[1] ** -0.5)  # so that answers depend on the image
    return model.eval()
