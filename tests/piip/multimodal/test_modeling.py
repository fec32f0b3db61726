"""PIIP-LLaVA among the models of transformers: its numbers, files and answers."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

import piip.multimodal
from piip.multimodal import (
    PIIPLlavaConfig,
    PIIPLlavaForConditionalGeneration,
    PIIPLlavaProcessor,
    PIIPVisionConfig,
    PIIPVisionModel,
    load,
)
from piip.official import build_projector, build_tower, convert_projector, convert_tower

from ...shared_data import golden
from .tiny import IMAGE_SIZE, llava, processor, tokenizer, vision_config

CASES = ["a1_llava_2branch_v1", "a2_llava_2branch_mix"]
ANSWER = {"max_new_tokens": 8, "do_sample": False}


def images(number: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(number, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(seed))


def batch(number: int = 1) -> dict[str, Any]:
    texts = ["USER: <image>\nhow many discs? ASSISTANT:"] * number
    inputs = processor()(images=[image(40, 70)] * number, text=texts, return_tensors="pt")
    return {**inputs, "pixel_values": images(number)}


def image(height: int, width: int) -> Any:
    from PIL import Image

    pixels = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(height))
    return Image.fromarray(pixels.byte().numpy())


@pytest.mark.parametrize("name", CASES)
def test_golden_tokens_through_the_models_of_transformers(name: str) -> None:
    """Joining both maps to one tensor and taking them apart again changes no number."""
    case = golden("fixtures/multimodal", name)
    vision = PIIPVisionConfig.from_published(case.meta["model"], case.meta["branch_models"])
    text = {"model_type": "llama", "hidden_size": case.meta["llm_hidden_size"], "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 9}
    config = PIIPLlavaConfig(vision_config=vision, text_config=text, image_token_index=8)
    model = PIIPLlavaForConditionalGeneration(config).double().eval()
    tower = convert_tower(case.group("state"))
    model.model.vision_tower.tower.load_state_dict(tower)
    model.model.multi_modal_projector.load_state_dict(convert_projector(case.group("state_projector")))
    (found,) = model.get_image_features(case.arrays["input"].double()[:1]).pooler_output
    reference = case.arrays["out/tokens"].double()[0]
    assert (found - reference).abs().max() <= 2e-6 * max(1.0, float(reference.abs().max()))
    assert vision.num_tokens == len(reference)


def test_auto_classes_know_the_models() -> None:
    vision = vision_config()
    assert isinstance(AutoModel.from_config(vision), PIIPVisionModel)
    config = AutoConfig.for_model("piip_llava", vision_config=vision.to_dict())
    assert isinstance(config, PIIPLlavaConfig)
    assert isinstance(config.vision_config, PIIPVisionConfig)
    assert (vision.image_size, vision.patch_size, vision.hidden_size, vision.map_channels) == (
        IMAGE_SIZE,
        32,
        56,
        [32, 24],
    )
    assert PIIPVisionConfig.from_released("piip-llava_convnext-b_clip-l_640-224_7B").num_tokens == 400
    with pytest.raises(ValueError, match="no published model is called 'clip'"):
        PIIPVisionConfig.from_released("clip")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_answers_are_the_same_with_and_without_the_cache(attention: str) -> None:
    model = llava()
    model.set_attn_implementation(attention)
    inputs = batch(2)
    cached, fresh = (model.generate(**inputs, **ANSWER, use_cache=use) for use in (True, False))
    assert torch.equal(cached, fresh)
    assert torch.equal(cached, llava().generate(**inputs, **ANSWER))
    other = model.generate(**{**inputs, "pixel_values": images(2, seed=1)}, **ANSWER)
    assert not torch.equal(cached, other), "the answer should depend on the image"


def test_an_image_is_never_an_answer() -> None:
    model = llava()
    with torch.no_grad():
        model.lm_head.weight[model.config.image_token_id] *= 1e3
    start = batch()["input_ids"].shape[1]
    assert model.config.image_token_id not in model.generate(**batch(), **ANSWER)[:, start:]


def test_saved_and_loaded_again(tmp_path: Path) -> None:
    model = llava()
    model.save_pretrained(tmp_path)
    processor().save_pretrained(tmp_path)
    again, its_processor = load(tmp_path)
    state, loaded = model.state_dict(), again.state_dict()
    assert state.keys() == loaded.keys()
    assert all(torch.equal(state[key], loaded[key]) for key in state)
    assert isinstance(AutoProcessor.from_pretrained(tmp_path), PIIPLlavaProcessor)
    text, picture = "<image> how many discs?", image(30, 50)
    ours, theirs = (p(images=picture, text=text, return_tensors="pt") for p in (processor(), its_processor))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)

    half = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.bfloat16, device_map={"": "cpu"})
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert half.generate(**batch(), **ANSWER).shape == model.generate(**batch(), **ANSWER).shape
    with torch.no_grad():
        exact = model.model.get_image_features(images(2)).pooler_output
        rounded = half.model.get_image_features(images(2)).pooler_output
    for a, b in zip(exact, rounded, strict=True):
        # eight bits of mantissa through some twenty layers: measured 0.02 of the largest
        assert (a - b.float()).abs().max() <= 0.06 * a.abs().max()


@pytest.mark.parametrize("place", ["model.vision_tower", "lm_head"])
def test_parts_may_lie_on_the_disk(tmp_path: Path, place: str) -> None:
    model = llava()
    model.save_pretrained(tmp_path)
    parts = ("model.vision_tower", "model.multi_modal_projector", "model.language_model", "lm_head")
    places = {part: "disk" if part == place else "cpu" for part in parts}
    split = AutoModelForImageTextToText.from_pretrained(
        tmp_path, device_map=places, offload_folder=tmp_path / "offloaded"
    )
    with torch.no_grad():
        assert torch.equal(split(**batch()).logits, model(**batch()).logits)
    assert {"PIIPTower"} <= set(model._no_split_modules)


def test_a_checkpoint_of_another_tower_is_refused(tmp_path: Path) -> None:
    llava().save_pretrained(tmp_path)
    processor().save_pretrained(tmp_path)
    other = vision_config(stages=[[[0, 3]], [[0, 7]]])
    PIIPLlavaConfig(
        vision_config=other, text_config=llava().config.text_config, image_token_index=13
    ).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"not those of the model .* tensors differ: .*interactions\.1\..* is unknown"
    ):
        load(tmp_path)
    vision_config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="of type 'piip_vision', expected 'piip_llava'"):
        load(tmp_path)


def test_missing_weights_start_as_the_parts_do(tmp_path: Path) -> None:
    """Interactions that a checkpoint lacks do nothing, whatever transformers does to layers it fills in."""
    model = llava().model.vision_tower
    kept = {k: v for k, v in model.state_dict().items() if ".interactions." not in k}
    model.save_pretrained(tmp_path, state_dict=kept)
    again = AutoModel.from_pretrained(tmp_path)
    started = [v for k, v in again.state_dict().items() if k.endswith("gamma") and ".interactions." in k]
    assert started
    assert not any(value.any() for value in started)
    offsets = again.tower.piip.interactions[0].units["1_2"].large_to_small.attn.sampling_offsets.bias
    assert offsets.abs().max() == 4  # the last point of a head lies four cells away


def test_gradients_are_the_same_with_recomputed_blocks() -> None:
    gradients = []
    for recompute in (False, True):
        model = llava().train()
        for module in model.modules():
            if hasattr(module, "drop_prob"):
                module.drop_prob = 0.0
        if recompute:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            assert model.model.vision_tower.gradient_checkpointing
        inputs = batch()
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    plain, recomputed = gradients
    assert plain.keys() == recomputed.keys()
    assert any("piip.branches.0.embeddings" in name for name in plain)
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 3, 32, 64), (1, 1, 64, 64), (3, 64, 64)])
def test_images_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \(batch, 3, 64, 64\): use the image processor"):
        llava().model.vision_tower(torch.zeros(shape))


def test_more_places_than_images() -> None:
    inputs = batch(2)
    with pytest.raises(ValueError, match="Image features and image tokens do not match"):
        llava()(**{**inputs, "pixel_values": inputs["pixel_values"][:1]})


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="unknown family 'vit' of a branch: expected one of clip, convnext"):
        PIIPVisionModel(vision_config(branches=[{"family": "vit"}, *vision_config().branches[1:]]))


def test_without_transformers_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.startswith("piip.multimodal.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        ImportError, match=r"^piip\.multimodal\.load needs transformers: pip install 'piip\[multimodal\]'$"
    ):
        _ = piip.multimodal.load
    importlib.import_module("piip.multimodal.official")  # tower and projector do without


def test_the_tower_is_that_of_the_builders() -> None:
    case = golden("fixtures/multimodal", CASES[1])
    vision = PIIPVisionConfig.from_published(case.meta["model"], case.meta["branch_models"])
    built = build_tower(case.meta["model"], case.meta["branch_models"]).state_dict()
    assert PIIPVisionModel(vision).tower.state_dict().keys() == built.keys()
    config = PIIPLlavaConfig(vision_config=vision, text_config=llava().config.text_config)
    projector = PIIPLlavaForConditionalGeneration(config).model.multi_modal_projector
    assert projector.state_dict().keys() == build_projector(case.meta["model"], 32).state_dict().keys()
    assert tokenizer().eos_token == "</s>"
