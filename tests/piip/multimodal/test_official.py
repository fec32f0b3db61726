"""Tower and projector of PIIP-LLaVA compute what the published code computes."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from piip import cross_attention
from piip.branches.clip import ACTIVATIONS
from piip.multimodal.towers import hidden_size, published_model
from piip.official import (
    build_projector,
    build_tower,
    convert_projector,
    convert_tower,
    to_official_projector,
    to_official_tower,
)
from piip.weights.zoo import PublishedModel, models_of
from piip_ops import deform_cross_attn

from ...shared_data import Golden, golden, key_list

CASES = ["a1_llava_2branch_v1", "a2_llava_2branch_mix"]


def close(value: Tensor, reference: Tensor) -> bool:
    """To 2e-6 of the largest value, as the golden data state for float64."""
    assert value.shape == reference.shape
    limit = 2e-6 * max(1.0, float(reference.abs().max()))
    return bool((value - reference.double()).abs().max() <= limit)


def models(case: Golden) -> tuple[Any, Any]:
    tower = build_tower(case.meta["model"], case.meta["branch_models"]).double().eval()
    tower.load_state_dict(convert_tower({k: v.double() for k, v in case.group("state").items()}))
    projector = build_projector(case.meta["model"], case.meta["llm_hidden_size"]).double()
    state = {k: v.double() for k, v in case.group("state_projector").items()}
    projector.load_state_dict(convert_projector(state))
    return tower, projector


@pytest.mark.parametrize("name", CASES)
def test_golden_maps_tokens_and_gradients(name: str) -> None:
    case = golden("fixtures/multimodal", name)
    tower, projector = models(case)
    image = case.arrays["input"].double().requires_grad_()
    maps = tower(image)
    tokens = projector(maps)
    assert close(maps[0].detach(), case.arrays["out/map1"])
    assert close(maps[1].detach(), case.arrays["out/map2"])
    assert close(tokens.detach(), case.arrays["out/tokens"])

    tokens.backward(case.arrays["grad/cotangent"].double())
    zero = {key: torch.zeros_like(p) for key, p in tower.named_parameters()}
    own = {key: p.grad if p.grad is not None else zero[key] for key, p in tower.named_parameters()}
    gradients = {f"tower.{key}": value for key, value in to_official_tower(own).items()}
    projected = {key: p.grad for key, p in projector.named_parameters()}
    gradients |= {f"projector.{key}": v for key, v in to_official_projector(projected).items()}
    references = case.group("grad/param")
    assert references
    for key, reference in references.items():
        assert close(gradients[key], reference), key
    assert image.grad is not None
    assert close(image.grad[0, 0], case.arrays["grad/input_b0c0"])


@pytest.mark.parametrize("name", CASES)
def test_names_go_back(name: str) -> None:
    state = golden("fixtures/multimodal", name).group("state")
    back = to_official_tower(convert_tower(state))
    assert back.keys() == state.keys()
    assert all(back[key] is state[key] for key in state)
    with pytest.raises(ValueError, match=r"1 keys are unknown: branch3\.x"):
        convert_tower({**state, "branch3.x": torch.zeros(1)})


@cache
def shapes_of_tower(
    branches: tuple[str, str], sizes: tuple[int, int], interactions: int
) -> dict[str, Tensor]:
    released = next(
        r
        for r in models_of("multimodal")
        if (r.branches, r.image_sizes, r.num_interactions) == (branches, sizes, interactions)
    )
    with torch.device("meta"):
        return dict(build_tower(published_model(released)).state_dict())


@pytest.mark.parametrize("released", models_of("multimodal"), ids=lambda released: released.name)
def test_released_key_lists_load_whole(released: PublishedModel) -> None:
    """Every name and shape of a released tower and projector finds its place, and none is left over."""
    published = key_list("keys_tasks", f"llava__{released.name}")
    tower = shapes_of_tower(released.branches, released.image_sizes, released.num_interactions)
    with torch.device("meta"):
        projector = build_projector(published_model(released), published["llm_hidden_size"]).state_dict()
    assert hidden_size(released) == published["llm_hidden_size"]
    for keys, expected, convert, back in (
        (published["keys"], tower, convert_tower, to_official_tower),
        (published["projector_keys"], projector, convert_projector, to_official_projector),
    ):
        state = convert({key: torch.empty(shape, device="meta") for key, shape in keys.items()})
        assert state.keys() == expected.keys()
        assert all(state[key].shape == expected[key].shape for key in expected)
        assert back(state).keys() == keys.keys()
    assert sum(tensor.numel() for tensor in tower.values()) == published["total_params"]


def clip_of(activation: str, patch: int) -> tuple[Any, dict[str, Any]]:
    """A CLIP of Hugging Face, random, and what a golden case says of one."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"image_size": 32, "patch_size": patch, "hidden_act": activation, "layer_norm_eps": 1e-5}
    model = CLIPVisionModel(CLIPVisionConfig(**sizes)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model, sizes


def one_branch(sizes: dict[str, Any], **settings: Any) -> Any:
    """A tower of two equal CLIPs, the first of which is looked at."""
    branch = {"model_type": "clip_hf", "img_size": 32, "interaction_indexes": [[0, 0], [1, 1]], **settings}
    backbone = {"interact_attn_type": "deform", "deform_num_heads": 4, "branch1": branch, "branch2": branch}
    tower = build_tower({"backbone": backbone}, {"branch1": sizes, "branch2": sizes}).double().eval()
    return tower.piip.branches[0]


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_clip_is_that_of_hugging_face(activation: str) -> None:
    """Run in two parts, with the class token set aside between them, whatever its activation."""
    model, sizes = clip_of(activation, 8)
    branch = one_branch(sizes)
    state = convert_tower({f"branch1.clip_model.{key}": v for key, v in model.state_dict().items()})
    branch.load_state_dict({key.removeprefix("piip.branches.0."): v for key, v in state.items()})
    image = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    x, token = branch.run_stage(branch.embed(image), branch.prefix_tokens(2), 0, 0)
    x, token = branch.run_stage(x, token, 1, 1)
    reference = model(image).last_hidden_state
    # float64; the fast GELU writes sqrt(2 / pi) with ten digits
    torch.testing.assert_close(torch.cat([token, x.flatten(1, 2)], 1), reference, rtol=1e-7, atol=1e-7)


def test_a_patch_size_that_is_not_that_of_the_training() -> None:
    """The kernel has the new size, the positions are as many as the training had."""
    _, sizes = clip_of("gelu", 8)
    branch = one_branch(sizes, patch_size=16, pretrain_patch_size=8)
    assert branch.embeddings.patch_embedding.weight.shape == (16, 3, 16, 16)
    assert branch.embeddings.position_embedding.weight.shape == (1 + (32 // 8) ** 2, 16)
    assert branch.stride(0) == 16
    with pytest.raises(ValueError, match="pretrain_patch_size 14 of a model with patches of 8 px"):
        one_branch(sizes, pretrain_patch_size=14)


def test_in_half_precision_the_sampling_alone_is_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    case = golden("fixtures/multimodal", CASES[0])
    tower, _ = models(case)
    exact = tower(case.arrays["input"].double())
    seen: list[torch.dtype] = []

    def sampled(*args: Any) -> Tensor:
        seen.extend(tensor.dtype for tensor in args[:3])
        return deform_cross_attn(*args)

    monkeypatch.setattr(cross_attention, "deform_cross_attn", sampled)
    tower.bfloat16()
    for name, module in tower.named_modules():
        if name.endswith("attn.output_proj"):
            module.register_forward_hook(
                lambda _, inputs, output: seen.extend((inputs[0].dtype, output.dtype))
            )
    halves = tower(case.arrays["input"].float())  # resized before it is rounded
    assert seen == [*[torch.float32] * 3, *[torch.bfloat16] * 2] * 4
    for half, reference in zip(halves, exact, strict=True):
        assert half.dtype == torch.bfloat16
        # rounding to eight bits at every layer of a random model: measured 0.03 of the largest value
        assert (half.double() - reference).abs().max() <= 0.1 * reference.abs().max()


def test_what_cannot_be() -> None:
    model = golden("fixtures/multimodal", CASES[0]).meta["model"]
    with pytest.raises(ValueError, match="tiny:d1l is no released model: give its sizes in branch_models"):
        build_tower(model)
    with pytest.raises(ValueError, match="unknown projector 'mlp'"):
        build_projector({"projector": {"type": "mlp"}}, 32)
    sizes = golden("fixtures/multimodal", CASES[0]).meta["branch_models"]
    odd = {**sizes, "branch1": {**sizes["branch1"], "hidden_act": "swoosh"}}
    with pytest.raises(ValueError, match="unknown activation 'swoosh'"):
        build_tower(model, odd)
