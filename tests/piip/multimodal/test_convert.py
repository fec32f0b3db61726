"""Whole released checkpoints to transformers and back, shard by shard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from piip.multimodal import PIIPVisionConfig, convert, load
from piip.multimodal.convert import convert_folder
from piip.weights.converters.llava import to_official_llava

from .tiny import llava, tokenizer, vision_config

NAME = "piip-llava_clip-bl_512-256_7B"


@pytest.fixture
def released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, dict[str, Tensor]]:
    """A tiny model as the release would have written it: two ``.bin`` files and their index."""
    monkeypatch.setattr(PIIPVisionConfig, "from_released", classmethod(lambda cls, name: vision_config()))
    folder = tmp_path / "released"
    model = llava()
    state = {key: value.half() for key, value in model.state_dict().items()}
    for key in ("lm_head.weight", "model.language_model.embed_tokens.weight"):
        state[key] = state[key][:-1].clone()
    official = to_official_llava(state)
    assert "model.vision_tower.vision_tower.branch1.clip_model.embeddings.class_embedding" in official
    assert any(key.endswith("branch2to1_injector.ca_weight") for key in official)
    assert {"model.mm_projector.branch1.3.weight", "model.layers.1.mlp.up_proj.weight"} <= official.keys()

    tokenizer().save_pretrained(folder)
    keys = sorted(official)
    constant = "model.layers.0.self_attn.rotary_emb.inv_freq"
    files = {"pytorch_model-00001-of-00002.bin": keys[::2], "pytorch_model-00002-of-00002.bin": keys[1::2]}
    for name, own in files.items():
        torch.save({**{key: official[key] for key in own}, constant: torch.ones(4)}, folder / name)
    where = {key: name for name, own in files.items() for key in own}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    text: dict[str, Any] = {**model.config.text_config.to_dict(), "vocab_size": model.config.image_token_id}
    text |= {"model_type": "llava_llama", "mm_vision_tower": f"configs/{NAME}.py", "mm_hidden_size": 4}
    (folder / "config.json").write_text(json.dumps(text))
    return folder, official


def test_there_and_back(released: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    folder, official = released
    lines = convert_folder(folder, tmp_path / "ours")
    assert lines[0] == f"{folder} is {NAME}"
    assert len(list((tmp_path / "ours").glob("model-0000?-of-00002.safetensors"))) == 2
    model, _ = load(tmp_path / "ours")
    for key, value in llava().state_dict().items():
        rows = slice(-1 if key.endswith(("lm_head.weight", "embed_tokens.weight")) else None)
        assert torch.equal(model.state_dict()[key][rows], value.half()[rows]), key

    convert_folder(tmp_path / "ours", tmp_path / "back", to_official=True)
    back = {key: tensor for shard in convert._shards(tmp_path / "back") for key, tensor in shard.items()}
    assert back.keys() == official.keys()
    assert all(torch.equal(back[key], official[key]) for key in official)
    settings = json.loads((tmp_path / "back" / "config.json").read_text())
    assert (settings["mm_vision_tower"], settings["vocab_size"]) == (f"configs/{NAME}.py", 13)


def test_what_cannot_be_converted(released: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    folder, _ = released
    with pytest.raises(
        ValueError, match="holds already a released PIIP-LLaVA: convert it without --to-official"
    ):
        convert_folder(folder, tmp_path / "ours", to_official=True)
    with pytest.raises(ValueError, match="exists and is not empty: give a new folder"):
        convert_folder(folder, folder)
    with pytest.raises(FileNotFoundError, match=r"holds none of model\.safetensors\.index\.json"):
        convert_folder(tmp_path / "nothing", tmp_path / "ours")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "mm_vision_tower": "clip"}))
    with pytest.raises(
        ValueError, match="names the tower 'clip', which is no released one: give --tower, one of"
    ):
        convert_folder(folder, tmp_path / "ours")


def test_a_checkpoint_of_another_tower(
    released: tuple[Path, dict[str, Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = released
    other = vision_config(stages=[[[0, 3]], [[0, 7]]])
    monkeypatch.setattr(PIIPVisionConfig, "from_released", classmethod(lambda cls, name: other))
    with pytest.raises(
        ValueError, match=rf"is no {NAME}, \d+ tensors differ: .*interactions\.1\..* is unknown"
    ):
        convert_folder(folder, tmp_path / "ours")
