"""Published classifiers: golden numbers, names in both directions, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from piip.official import build_classifier, convert_classifier, to_official_classifier

from ...shared_data import Golden, golden, key_list, key_lists, names

CASES = names("fixtures/classification")
RELEASED = [name for name in key_lists("keys_tasks") if name.startswith("classification__piip")]


def tolerance(reference: Tensor) -> float:
    """What the golden data state for float64: they are stored as float32."""
    return 2e-6 * max(1.0, float(reference.abs().max()))


def published(case: Golden) -> torch.nn.Module:
    model = build_classifier(case.meta["config"]).double().eval()
    state = {key: tensor.double() for key, tensor in case.group("state").items()}
    model.load_state_dict(convert_classifier(state))
    return model


@pytest.mark.parametrize("name", CASES)
def test_golden_logits_and_maps(name: str) -> None:
    """The logits, and each branch's tokens and class token after each interaction."""
    case = golden("fixtures/classification", name)
    model = published(case)
    image = case.arrays["input"].double()
    with torch.no_grad():
        maps = model.piip.embed(model.piip.image_pyramid(image))
        tokens = [branch.prefix_tokens(len(image)) for branch in model.piip.branches]
        for stage in range(model.piip.num_stages):
            maps, tokens = model.piip.run_stage(stage, maps, tokens)
            for number, (x, token) in enumerate(zip(maps, tokens, strict=True), start=1):
                reference = case.arrays[f"mid/interaction{stage}/branch{number}"].double()
                assert (x.flatten(1, 2) - reference).abs().max() < tolerance(reference)
                key = f"mid/interaction{stage}/cls{number}"
                assert (token is not None) == (key in case.arrays)
                if token is not None:
                    reference = case.arrays[key].double()
                    assert (token - reference).abs().max() < tolerance(reference)
        logits = model(image)
    reference = case.arrays["out/logits"].double()
    assert (logits - reference).abs().max() < tolerance(reference)
    with torch.no_grad():
        single = model.float()(image.float())
    assert (single - reference).abs().max() < 3e-4 * max(1.0, float(reference.abs().max()))


@pytest.mark.parametrize("name", [name for name in CASES if name != "cls3_deit_heads"])
def test_golden_gradients(name: str) -> None:
    case = golden("fixtures/classification", name)
    model = published(case)
    image = case.arrays["input"].double().requires_grad_()
    logits = model(image)
    logits.backward(case.arrays["grad/cotangent"].double())
    gradients = to_official_classifier(
        {key: p.grad if p.grad is not None else torch.zeros_like(p) for key, p in model.named_parameters()}
    )
    references = case.group("grad/param")
    assert references
    for key, reference in references.items():
        assert (gradients[key] - reference.double()).abs().max() < tolerance(reference), key
    if "grad/input_b0c0" in case.arrays:
        reference = case.arrays["grad/input_b0c0"].double()
        assert image.grad is not None
        assert (image.grad[0, 0] - reference).abs().max() < tolerance(reference)


@pytest.mark.parametrize("name", CASES)
def test_names_go_back(name: str) -> None:
    state = golden("fixtures/classification", name).group("state")
    back = to_official_classifier(convert_classifier(state))
    assert back.keys() == state.keys()
    assert all(back[key] is state[key] for key in state)


@pytest.mark.parametrize("name", RELEASED)
def test_released_key_lists_load_whole(name: str) -> None:
    """Every name and shape of a released classifier finds its place, and none is left over."""
    released = key_list("keys_tasks", name)
    state = {key: torch.empty(shape, device="meta") for key, shape in released["keys"].items()}
    converted = convert_classifier(state)
    letters = name.removeprefix("classification__piip_3branch_").split("_")[0]
    widths = {"t": (192, 12, 3), "s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16)}
    sizes = name.split("_")[5].split("-")
    stages = {12: [[i, i] for i in range(12)], 24: [[2 * i, 2 * i + 1] for i in range(12)]}
    config = {
        "separate_head": True,
        "interact_attn_type": "deform",
        "deform_num_heads": 16,
        "deform_ratio": 0.5,
        "with_cffn": True,
    }
    for number, (letter, size) in enumerate(zip(reversed(letters), reversed(sizes), strict=True), start=1):
        width, depth, heads = widths[letter]
        config[f"branch{number}"] = {
            "embed_dim": width,
            "depth": depth,
            "num_heads": heads,
            "img_size": int(size),
            "use_cls_token": True,
            "interaction_indexes": stages[depth],
            **({"model_type": "augreg"} if "augreg" in name else {}),
        }
    with torch.device("meta"):
        model = build_classifier(config)
    expected = model.state_dict()
    assert converted.keys() == expected.keys()
    assert all(converted[key].shape == expected[key].shape for key in expected)
    assert sum(math.prod(shape) for shape in released["keys"].values()) == released["total_params"]


def test_heads_look_at_the_first_patch() -> None:
    """What is elsewhere in a map does not change a branch's own logits."""
    case = golden("fixtures/classification", "cls3_deit_heads")
    head = published(case).head
    maps = [torch.randn(1, 3, 3, dim, dtype=torch.float64) for dim in (64, 48, 32)]
    with torch.no_grad():
        before = head(maps)
        for x in maps:
            x[:, 1:] += 1
            x[:, 0, 1:] -= 1
        assert torch.equal(head(maps), before)


def test_unknown_names_and_shapes() -> None:
    state = golden("fixtures/classification", "cls3_merged").group("state")
    with pytest.raises(ValueError, match=r"a\.pth is no released classifier, 1 keys are unknown: fc\.weight"):
        convert_classifier({**state, "fc.weight": torch.zeros(1)}, "a.pth")
    with pytest.raises(ValueError, match=r"cls_head|head\.head\.weight holds NaN"):
        convert_classifier({**state, "cls_head.weight": torch.full((10, 96), math.nan)}, "a.pth")


def test_no_class_token_in_windows() -> None:
    config = golden("fixtures/classification", "b1_cls3_merge_window").meta["config"]
    odd = {**config, "branch3": {**config["branch3"], "use_cls_token": True}}
    with pytest.raises(ValueError, match="a class token belongs to no window"):
        build_classifier(odd)
