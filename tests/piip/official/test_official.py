"""Published configurations and key lists."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from piip.official import build_backbone, convert_backbone, to_official_backbone
from piip.weights.differences import differences

from ...shared_data import Golden, golden, key_list, key_lists, names

KEYS = key_lists("keys")
BEIT = "3branch__mask_rcnn_beit_sbl_1568_1120_672_fpn_1x_coco_bs16"


@pytest.mark.parametrize("name", KEYS)
def test_key_lists(name: str) -> None:
    """Every tensor of the published model has its place, and there is no other; parts count as published."""
    keys = key_list("keys", name)
    with torch.device("meta"):
        state = {key: torch.empty(shape) for key, shape in keys["keys"].items()}
        model = build_backbone(keys["backbone_config"], replicate_branch4_bug=True)
    converted = convert_backbone(state)
    model.load_state_dict(converted, strict=True, assign=True)
    assert sum(p.numel() for p in model.parameters()) == keys["total_params"]
    for part, count in keys["params_by_part"].items():
        if part.startswith("branch"):
            assert sum(p.numel() for p in model.piip.branches[int(part[6:]) - 1].parameters()) == count
        elif part == "interactions":
            assert sum(p.numel() for p in model.piip.interactions.parameters()) == count
        elif part.startswith("merge_branch"):
            assert sum(p.numel() for p in model.piip.merge.transforms[part[-1]].parameters()) == count
        elif part in ("fpn1", "fpn2"):
            assert sum(p.numel() for p in getattr(model.pyramid, f"f{part[-1]}").parameters()) == count
    # and back: the very same tensors, so the same bits
    published = to_official_backbone(converted)
    assert published.keys() == state.keys()
    for key, tensor in published.items():
        constant = key.endswith("relative_position_index")
        assert tensor.shape == state[key].shape if constant else tensor is state[key]


def test_branch4() -> None:
    """The released four-branch detectors have a second S where their configuration says T."""
    config = key_list("keys", "4branch__mask_rcnn_deit_tsbl_1568_1120_672_448_fpn_1x_coco_bs16")[
        "backbone_config"
    ]
    with torch.device("meta"):
        assert build_backbone(config).piip.branches[3].embed_dim == 192
        released = build_backbone(config, replicate_branch4_bug=True)
    assert released.piip.branches[3].embed_dim == 384
    assert released.piip.image_sizes == [448, 672, 1120, 1568]


def detector() -> Golden:
    return golden("fixtures/mask_rcnn", "golden_mask_rcnn_a")


@pytest.fixture
def state() -> dict[str, Tensor]:
    """Of a tiny published backbone, with three branches."""
    tensors = detector().group("state").items()
    return {key.removeprefix("backbone."): tensor for key, tensor in tensors if key.startswith("backbone.")}


def published_index(size: int) -> Tensor:
    """The index of relative positions as BEiT's code makes it."""
    coordinates = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")).flatten(
        1
    )
    relative = (coordinates[:, :, None] - coordinates[:, None, :]).permute(1, 2, 0).contiguous()
    relative[:, :, 0] += size - 1
    relative[:, :, 1] += size - 1
    relative[:, :, 0] *= 2 * size - 1
    return relative.sum(-1)


@pytest.fixture
def beit_state() -> dict[str, Tensor]:
    """One published BEiT block of window 28, with everything else of its detector on the meta device."""
    shapes = key_list("keys", BEIT)["keys"]
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    for key in shapes:
        if key.endswith("relative_position_index"):
            state[key] = published_index(28)
        elif "relative_position_bias_table" in key:
            state[key] = torch.randn(shapes[key])
    return state


def test_beit_index_is_remade(beit_state: dict[str, Tensor]) -> None:
    converted = convert_backbone(beit_state)
    assert not any(key.endswith("index") for key in converted)
    published = to_official_backbone(converted)
    assert list(published.keys() ^ beit_state.keys()) == []
    for key, tensor in published.items():
        if key.endswith("index"):
            assert tensor.dtype == torch.int64 and torch.equal(tensor, beit_state[key])


def test_another_beit_index_is_refused(beit_state: dict[str, Tensor]) -> None:
    key = "branch2.blocks.3.attn.relative_position_index"
    beit_state[key] = beit_state[key].flip(0)
    with pytest.raises(ValueError, match=rf"{key} is not the index .* of 28x28"):
        convert_backbone(beit_state)


def test_one_tensor_under_two_names_is_refused(state: dict[str, Tensor]) -> None:
    state["branch1.blocks.0.ls1.gamma"] = state["branch1.blocks.0.gamma_1"]
    with pytest.raises(ValueError, match=r"branch1\.blocks\.0\.gamma_1 and branch1\.blocks\.0\.ls1\.gamma"):
        convert_backbone(state)


@pytest.mark.parametrize("name", names("fixtures/backbone"))
def test_round_trip_of_golden_states(name: str) -> None:
    state = golden("fixtures/backbone", name).group("state")
    published = to_official_backbone(convert_backbone(state))
    assert published.keys() == state.keys()
    assert all(tensor is state[key] for key, tensor in published.items())


def test_what_was_never_published_is_refused(state: dict[str, Tensor]) -> None:
    ours = convert_backbone(state)
    ours["piip.branches.0.new"] = ours["pyramid.f9.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"2 keys .* piip.branches.0.new, pyramid.f9"):
        to_official_backbone(ours)
    del ours["piip.branches.0.new"], ours["pyramid.f9.weight"], ours["piip.branches.0.pos_embed"]
    with pytest.raises(ValueError, match=r"piip.branches.0.pos_embed is missing"):
        to_official_backbone(ours)


def test_unknown_keys_are_named(state: dict[str, Tensor]) -> None:
    state["branch1.cls_token"] = state["fpn3.0.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"2 keys .* branch1.cls_token, fpn3.0.weight"):
        convert_backbone(state)


@pytest.mark.parametrize(
    "key",
    [
        "w1",
        "branch2.pos_embed",
        "branch1.patch_embed.proj.weight",
        "branch3.blocks.1.attn.qkv.weight",
        "branch2.blocks.0.mlp.fc1.bias",
        "interactions.0.interaction_units_12.branch2to1_proj.weight",
        "interactions.1.interaction_units_23.branch1to2_injector.attn.value_proj.weight",
        "interactions.1.interaction_units_12.branch2to1_injector.ffn.dwconv.dwconv.weight",
        "merge_branch2.0.weight",
        "merge_branch3.4.bias",
        "fpn1.3.weight",
        "fpn2.0.bias",
    ],
)
def test_wrong_shapes_are_named(state: dict[str, Tensor], key: str) -> None:
    """Renaming looks at no shape; the model that the weights are for does."""
    tensor = state[key]
    state[key] = torch.zeros(1) if tensor.ndim == 0 else torch.cat([tensor, tensor[:1]])
    with torch.device("meta"):
        model = build_backbone(detector().meta["model"]["backbone"])
    converted = convert_backbone(state)
    name = dict(zip(state, converted, strict=True))[key]
    (problem,) = differences(converted, model.state_dict())
    assert problem.startswith(f"1 shapes differ: {name} ")


def test_missing_keys_are_refused_on_loading(state: dict[str, Tensor]) -> None:
    del state["branch1.blocks.0.gamma_1"]
    model = build_backbone(detector().meta["model"]["backbone"])
    with pytest.raises(RuntimeError, match=r"piip\.branches\.0\.blocks\.0\.ls1\.gamma"):
        model.load_state_dict(convert_backbone(state), strict=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "PIIPFiveBranch"}, "unknown backbone type 'PIIPFiveBranch'"),
        ({"interact_attn_type": "x"}, "'x'"),
    ],
)
def test_unknown_settings(change: dict[str, str], message: str) -> None:
    config = detector().meta["model"]["backbone"]
    with pytest.raises(ValueError, match=message):
        build_backbone({**config, **change})
