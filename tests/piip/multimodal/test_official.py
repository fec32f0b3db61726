"""Tower and projector of PIIP-LLaVA compute what the published code computes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from piip.official import (
    build_projector,
    build_tower,
    convert_projector,
    convert_tower,
    to_official_projector,
    to_official_tower,
)

from ...shared_data import Golden, golden, need

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


CLIP_L, CLIP_B = "OpenGVLab/clip-vit-large-patch14to16-336", "openai/clip-vit-base-patch16"
CONVNEXT_L = "convnext_large_mlp.clip_laion2b_ft_320"
PAIRS = [[2 * i, 2 * i + 1] for i in range(12)]
THREES = [[0, 2], [3, 6], [7, 10], *([i, i + 2] for i in range(11, 33, 3)), [35, 38]]


@pytest.mark.parametrize(
    ("name", "second", "sizes", "ranges"),
    [
        ("llava__piip-llava_clip-bl_512-448_7B", CLIP_B, (448, 512), [[i, i] for i in range(12)]),
        ("llava__piip-llava_convnext-l_clip-l_1024-336_7B", CONVNEXT_L, (336, 1024), THREES),
    ],
)
def test_released_key_lists_load_whole(
    name: str, second: str, sizes: tuple[int, int], ranges: list[list[int]]
) -> None:
    """Every name and shape of a released tower and projector finds its place, and none is left over."""
    released = json.loads((need("keys_tasks") / f"{name}.json").read_text())
    kind = "convnext_timm" if second == CONVNEXT_L else "clip_hf"
    dims = {"dim1": 1024, "dim2": 1536 if second == CONVNEXT_L else 768}
    first = {
        "model_type": "clip_hf",
        "img_size": sizes[0],
        "interaction_indexes": PAIRS,
        "pretrained": CLIP_L,
    }
    model = {
        "backbone": {
            "interact_attn_type": "deform",
            "deform_num_heads": 16,
            "deform_ratio": 0.5,
            "with_cffn": True,
            "branch1": first,
            "branch2": {
                "model_type": kind,
                "img_size": sizes[1],
                "interaction_indexes": ranges,
                "pretrained": second,
            },
        },
        "projector": {"type": "separate_2branch_v1", "norm": "gn", **dims},
    }
    with torch.device("meta"):
        tower = build_tower(model).state_dict()
        projector = build_projector(model, released["llm_hidden_size"]).state_dict()
    for keys, expected, convert, back in (
        (released["keys"], tower, convert_tower, to_official_tower),
        (released["projector_keys"], projector, convert_projector, to_official_projector),
    ):
        state = convert({key: torch.empty(shape, device="meta") for key, shape in keys.items()})
        assert state.keys() == expected.keys()
        assert all(state[key].shape == expected[key].shape for key in expected)
        assert back(state).keys() == keys.keys()
    assert sum(tensor.numel() for tensor in tower.values()) == released["total_params"]


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
