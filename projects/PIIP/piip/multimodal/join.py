"""A new PIIP-LLaVA from a tower, its branches' pretrained weights, and a language model."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ..branches import CLIPBranch, Pretrained
from ..weights.pretrained import load_pretrained
from ..weights.zoo import find
from .configuration import PIIPLlavaConfig, PIIPVisionConfig
from .modeling import PIIPLlavaForConditionalGeneration
from .processing import IMAGE_TOKEN, PIIPLlavaProcessor

__all__ = ["join"]


def join(
    tower: str, language_model: str | Path, *, dtype: torch.dtype = torch.float32
) -> tuple[PIIPLlavaForConditionalGeneration, PIIPLlavaProcessor]:
    """The model that the first stage of training starts from: interactions and projector are new.

    Args:
        tower: of a released model, such as "piip-llava_clip-bl_512-256_7B"; its branches get the weights that
            the release's started from.
        language_model: folder, or name on the Hugging Face hub, of a language model such as Vicuna 1.5.
        dtype: of all parameters.

    Raises:
        ConnectionError, FileNotFoundError, OSError: weights cannot be had.
        ValueError: there is no such tower, or weights do not fit.
    """
    released = find(tower, "multimodal")
    tokenizer = AutoTokenizer.from_pretrained(language_model)
    tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.unk_token or tokenizer.eos_token
    text = AutoConfig.from_pretrained(language_model)
    model = PIIPLlavaForConditionalGeneration(
        PIIPLlavaConfig(
            vision_config=PIIPVisionConfig.from_released(tower),
            text_config=text,
            image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        )
    )
    branches = model.model.vision_tower.tower.piip.branches
    for branch, name in zip(branches, released.branches, strict=True):
        is_clip = isinstance(branch, CLIPBranch)
        branch.pretrained = Pretrained(
            source=f"{'hf' if is_clip else 'timm'}:{name}", family="clip" if is_clip else "convnext"
        )
    load_pretrained(model)
    own = AutoModelForCausalLM.from_pretrained(language_model, dtype=dtype)
    model.model.language_model, model.lm_head = own.model, own.lm_head
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return model.to(dtype), PIIPLlavaProcessor.of(model.config.vision_config, tokenizer)
