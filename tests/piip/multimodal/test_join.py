"""The model that the first stage of training starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from piip.branches import Branch, CLIPBranch
from piip.multimodal import PIIPVisionConfig, join
from piip.multimodal.processing import IMAGE_TOKEN
from piip.weights import pretrained

from .tiny import WORDS, clip, tokenizer, vision_config


def test_a_language_model_gets_eyes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps its weights and learns a word; branches start from the release's own models."""
    text = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    language = LlamaForCausalLM(text)
    language.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    vision = vision_config(branches=[clip(32, 4), clip(24, 8, use_class_token=True)])
    monkeypatch.setattr(PIIPVisionConfig, "from_released", classmethod(lambda cls, name: vision))
    asked: list[str] = []

    def read(source: str, **options: Any) -> dict[str, torch.Tensor]:
        """What Hugging Face has by that name: a CLIP of the size of the branch."""
        asked.append(source)
        sizes = {k: v for k, v in vision.branches[len(asked) - 1].items() if k != "family"}
        state = CLIPBranch(**sizes).state_dict()
        return {
            f"vision_model.{k.replace('blocks.', 'encoder.layers.')}": torch.full_like(v, 0.5)
            for k, v in state.items()
        }

    monkeypatch.setattr(pretrained, "read_source", read)
    model, processor = join.join("piip-llava_clip-bl_512-256_7B", tmp_path, dtype=torch.bfloat16)
    assert asked == ["hf:OpenGVLab/clip-vit-large-patch14to16-224", "hf:openai/clip-vit-base-patch16"]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    tower = model.model.vision_tower.tower.piip
    for branch in tower.branches:
        assert isinstance(branch, Branch)
        assert all((parameter == 0.5).all() for parameter in branch.parameters())
    assert not any(p.any() for name, p in tower.named_parameters() if name.endswith("_gamma"))

    image_id = processor.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    assert image_id == model.config.image_token_id == len(WORDS)
    for own, theirs in (
        (model.lm_head.weight, language.lm_head.weight),
        (model.get_input_embeddings().weight, language.get_input_embeddings().weight),
    ):
        assert torch.equal(own[:-1], theirs.bfloat16())
        assert len(own) == len(WORDS) + 1 == model.config.text_config.vocab_size
    inputs = processor(images=None, text="how many discs?", return_tensors="pt")
    assert model(**inputs).logits.shape[-1] == len(WORDS) + 1
