"""Models of timm as branches: timm's numbers at any size, windows that are windows, weights by tag."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from piip import PIIP
from piip.branches import TimmBranch, ViTBranch
from piip.engine.distributed.sharding import materialise
from piip.engine.optim import layer_decay_factors
from piip.flops import actual_cost, build_on_meta
from piip.weights.pretrained import convert_branch, load_pretrained

from .models import TINY_INTERACTION, randomise

SMALL: dict[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": 2}
SAM = {**SMALL, "global_attn_indexes": (1,)}
DINOV3, EVA02 = "vit_small_patch16_dinov3", "eva02_tiny_patch14_336"
FAMILIES: dict[str, tuple[int, dict[str, Any]]] = {  # native side in pixels
    "deit_tiny_patch16_224.fb_in1k": (224, SMALL),
    "deit_tiny_distilled_patch16_224": (224, SMALL),
    "deit3_small_patch16_224": (224, SMALL),
    "vit_small_patch14_dinov2.lvd142m": (518, SMALL),
    "vit_small_patch14_reg4_dinov2.lvd142m": (518, SMALL),
    "vit_small_patch16_dinov3.lvd1689m": (256, SMALL),
    "vit_small_plus_patch16_dinov3": (256, SMALL),  # SwiGLU
    "eva02_tiny_patch14_336.mim_in22k_ft_in1k": (336, SMALL),  # rotary positions, SwiGLU
    "vit_base_patch16_siglip_256.v2_webli": (256, SMALL),
    "vit_base_patch16_clip_224.openai": (224, SMALL),
    "vit_base_patch16_clip_quickgelu_224.openai": (224, SMALL),
    "samvit_base_patch16.sa1b": (1024, SAM),
    "vit_small_patch16_rope_mixed_ape_224": (224, SMALL),  # learned rotation, another one in each block
}
# float32, the same operators on the same numbers; the issue allows 1e-5 of values around 1
TOLERANCE = {"rtol": 0, "atol": 1e-5}


def small(name: str, **options: Any) -> TimmBranch:
    return randomise(TimmBranch(name, **{**SMALL, **options})).eval()  # type: ignore[return-value]


def last_map(branch: TimmBranch, image: Tensor) -> Tensor:
    """Of one branch without interactions, ``(B, C, h, w)``."""
    piip = PIIP([branch], [image.shape[-1]], num_interactions=0, merge=None)
    with torch.inference_mode():
        return piip.forward_branches(image)[0].permute(0, 3, 1, 2)


def of_timm(branch: TimmBranch, image: Tensor, **options: Any) -> Tensor:
    """What timm's own model with the branch's weights makes of an image."""
    model = timm.create_model(branch.name, **branch.options, **options).eval()
    left_out = model.load_state_dict(branch.model.state_dict(), strict=False)
    assert not left_out.unexpected_keys
    assert all(key.split(".")[0] in {"norm", "fc_norm", "head", "head_dist", "attn_pool", "neck"}
               for key in left_out.missing_keys)  # fmt: skip
    with torch.inference_mode():
        return model.forward_intermediates(image, norm=False, intermediates_only=True)[-1]


@pytest.mark.parametrize("name", FAMILIES)
def test_is_timm_at_its_native_size(name: str) -> None:
    side, options = FAMILIES[name]
    branch = small(name, **options)
    image = torch.randn(1, 3, side, side)
    torch.testing.assert_close(last_map(branch, image), of_timm(branch, image), **TOLERANCE)


@pytest.mark.parametrize("name", [name for name in FAMILIES if "samvit" not in name])
def test_is_timm_at_another_size(name: str) -> None:
    """A wide image whose last pixels fill no patch."""
    branch = small(name)
    patch = branch.patch_size
    image = torch.randn(2, 3, 5 * patch + 3, 7 * patch + patch - 1)
    whole = image[:, :, : 5 * patch, : 7 * patch]
    expected = of_timm(branch, whole, dynamic_img_size=True)
    torch.testing.assert_close(last_map(branch, image), expected, **TOLERANCE)


def test_sam_at_another_size() -> None:
    """Windows of 14 tokens on a map of 9 x 20, positions and relative positions resized."""
    branch = small("samvit_base_patch16", **SAM)
    image = torch.randn(1, 3, 144, 320)
    torch.testing.assert_close(last_map(branch, image), of_timm(branch, image), **TOLERANCE)


@pytest.mark.parametrize("name", [DINOV3, EVA02, "vit_small_patch14_reg4_dinov2"])
def test_one_window_is_the_whole_map(name: str) -> None:
    """What a window has beyond the edge is not seen. (DINOv3's rotation is relative to the window's size.)"""
    branch = small(name, window_size=6)
    patch = branch.patch_size
    image = torch.randn(1, 3, 6 * patch, 6 * patch)
    whole = last_map(branch, image)
    branch.window_sizes = [None, None]
    torch.testing.assert_close(last_map(branch, image), whole, **TOLERANCE)
    if name not in (DINOV3, EVA02):
        branch.window_sizes = [9, 11]
        torch.testing.assert_close(last_map(branch, image), whole, **TOLERANCE)


def test_windows_do_not_see_each_other() -> None:
    """But for the class and register tokens, and from one block to the next only."""
    branch = small(DINOV3, window_size=[3, None])
    image = torch.randn(1, 3, 5 * 16, 6 * 16)
    changed = image.clone()
    changed[:, :, :, 3 * 16 :] += 1  # the two windows on the right
    with torch.inference_mode():
        one, two = ([*branch.embed_tokens(i)] for i in (image, changed))
        (one, prefix), (two, other) = (branch.run_stage(*start, 0, 0) for start in (one, two))
        assert torch.equal(one[:, :, :3], two[:, :, :3]) and not torch.equal(one[:, :, 3:], two[:, :, 3:])
        assert prefix is not None and not torch.equal(prefix, other)
        one, two = (branch.run_stage(x, p, 1, 1)[0] for x, p in ((one, prefix), (two, other)))
    assert not torch.isclose(one[:, :, :3], two[:, :, :3]).all()


def test_windows_are_images_of_their_size() -> None:
    """No absolute positions: each window's tokens, and the mean of the copies of the prefix tokens."""
    branch = small(DINOV3, window_size=4)
    image = torch.randn(1, 3, 4 * 16, 8 * 16)
    with torch.inference_mode():
        x, prefix = branch.run_stage(*branch.embed_tokens(image), 0, 0)
        halves = [branch.run_stage(*branch.embed_tokens(half), 0, 0) for half in image.split(64, dim=3)]
    torch.testing.assert_close(x, torch.cat([half for half, _ in halves], dim=2), **TOLERANCE)
    torch.testing.assert_close(prefix, torch.stack([p for _, p in halves]).mean(0), **TOLERANCE)


def test_a_rotary_table_of_evaluation_serves_training() -> None:
    branch = small(DINOV3, depth=2)
    image = torch.randn(2, 3, 48, 48)
    with torch.inference_mode():
        expected = branch.run_stage(*branch.embed_tokens(image), 0, 1)[0]
    gradients = []
    for checkpointing in (False, True):
        branch.train()
        branch.set_grad_checkpointing(checkpointing)
        branch.zero_grad()
        x, _ = branch.run_stage(*branch.embed_tokens(image), 0, 1)
        torch.testing.assert_close(x, expected.clone(), **TOLERANCE)
        x.square().mean().backward()
        gradients.append({name: p.grad for name, p in branch.named_parameters()})
    assert all(g is not None for g in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], msg=name)


def test_a_pyramid_of_them() -> None:
    """Three families with 5, 1 and no tokens beside their maps; all they have takes part."""
    branches = [
        TimmBranch(DINOV3, **{**SMALL, "embed_dim": 64}, window_size=4),
        TimmBranch(EVA02, patch_size=16, **SMALL),
        TimmBranch("samvit_base_patch16", img_size=224, **SAM),
    ]
    piip = randomise(PIIP(branches, [64, 96, 128], num_interactions=2, interaction=TINY_INTERACTION))
    piip.set_grad_checkpointing()
    merged = piip(torch.randn(2, 3, 128, 128))
    assert merged.shape == (2, 64, 8, 8)
    merged.square().mean().backward()
    # the last block's output of class and register tokens goes nowhere, but all parameters serve the map, too
    assert [name for name, p in piip.named_parameters() if p.grad is None] == []


def test_layer_decay() -> None:
    """Embeddings and tokens lie before the blocks; a branch of half the depth takes steps twice as large."""
    branches = [TimmBranch(DINOV3, **{**SMALL, "depth": 4}), TimmBranch(EVA02, **SMALL)]
    factors = layer_decay_factors(PIIP(branches, [64, 128], num_interactions=2, merge=None), 0.5)
    expected = {"0.model.cls_token": 5, "0.model.reg_token": 5, "0.model.blocks.0.gamma_1": 4}
    expected |= {"0.model.blocks.3.norm1.weight": 1, "1.model.pos_embed": 5, "1.model.blocks.0.norm1.bias": 3}
    assert {name: factors[f"branches.{name}"] for name in expected} == {
        k: 0.5**v for k, v in expected.items()
    }


def test_cost() -> None:
    """DINOv3's blocks in windows of 4 on a map of 6 x 6: four windows of 16 tokens, 5 more in each."""
    with build_on_meta():
        branch = TimmBranch(DINOV3, window_size=4, **SMALL)
        report = actual_cost(PIIP([branch], [96], num_interactions=0, merge="conv"))
    dim, rows = 32, 4 * (16 + 5)
    parts = {name: part.macs for name, part in report.total.parts["branch1"].parts.items()}
    assert parts["attention_products"] == 2 * 2 * dim * 4 * 21**2
    assert parts["attention_projections"] == 2 * rows * (
        4 * dim * dim + 2 * dim
    )  # and the norm's 2 a channel
    assert parts["mlp"] == 2 * rows * (8 * dim * dim + 2 * dim)
    assert not [note for note in report.not_counted if "no handler" in note]


@pytest.mark.parametrize("name", [EVA02, "vit_base_patch16_clip_224", "samvit_base_patch16"])
def test_every_operator_is_known(name: str) -> None:
    with build_on_meta():
        branch = TimmBranch(name, **(SAM if "sam" in name else SMALL))
        report = actual_cost(PIIP([branch], [12 * branch.patch_size], num_interactions=0))
    assert not [note for note in report.not_counted if "no handler" in note]


def test_weights_from_a_file(tmp_path: Path) -> None:
    """In timm's layout; patches of 14 become 16, positions those of the grid of the native image."""
    source = randomise(timm.create_model(EVA02, **SMALL))
    torch.save({"model": source.state_dict()}, tmp_path / "eva02.pth")
    branch = TimmBranch(EVA02, patch_size=16, pretrained=str(tmp_path / "eva02.pth"), **SMALL)
    assert load_pretrained(nn.ModuleList([branch])) == ["0"]
    model = timm.create_model(EVA02, patch_size=16, **SMALL)
    expected = timm.models.eva.checkpoint_filter_fn(dict(source.state_dict()), model)
    state = branch.model.state_dict()
    assert state["pos_embed"].shape[1] == 1 + 21**2
    assert all(torch.equal(state[key], expected[key]) for key in state)
    assert torch.equal(state["blocks.1.mlp.fc2.weight"], source.state_dict()["blocks.1.mlp.fc2.weight"])


def test_weights_by_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm fetches them for the very model that the branch is."""
    name = "vit_small_patch16_dinov3.lvd1689m"
    branch = TimmBranch(name, drop_path_rate=0.1, **SMALL)
    source, asked = randomise(timm.create_model(name, **SMALL)), []
    original = timm.create_model

    def create_model(name: str, pretrained: bool = False, **options: Any) -> nn.Module:
        model = original(name, **{k: v for k, v in options.items() if k != "pretrained_cfg_overlay"})
        if pretrained:
            asked.append((name, options["depth"]))
            model.load_state_dict(source.state_dict())
        return model

    monkeypatch.setattr(timm, "create_model", create_model)
    load_pretrained(branch)
    assert asked == [(name, 2)]
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in branch.model.state_dict().items())


@pytest.mark.parametrize("name", [DINOV3, EVA02])
def test_built_without_memory(name: str) -> None:
    """As for sharded training: what no file holds, rotary positions and zero biases, is computed."""
    source = small(name)
    with torch.device("meta"):
        branch = TimmBranch(name, **SMALL).eval()
    materialise(branch, torch.device("cpu"))
    branch.load_state_dict(source.state_dict())
    image = torch.randn(1, 3, 64, 64)
    assert torch.equal(last_map(branch, image), last_map(source, image))


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    torch.save(timm.create_model(DINOV3, **SMALL).state_dict(), tmp_path / "dinov3.pth")
    branch = TimmBranch(EVA02, pretrained=str(tmp_path / "dinov3.pth"), **SMALL)
    before = {k: v.clone() for k, v in branch.state_dict().items()}
    with pytest.raises(ValueError, match=r"dinov3\.pth cannot be loaded .*the whole model's weights"):
        load_pretrained(branch)
    assert all(torch.equal(v, branch.state_dict()[k]) for k, v in before.items())
    assert TimmBranch(DINOV3, pretrained=False, **SMALL).pretrained is None
    with pytest.raises(ValueError, match="are for a TimmBranch"):
        convert_branch({}, branch, "timm", "file.pth")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vit_base_patch16_dinov4", {}, "timm has no model 'vit_base_patch16_dinov4': did you mean .*dinov3"),
        (
            "swin_tiny_patch4_window7_224",
            {},
            "cannot be a branch: expected a plain vision transformer .*eva02",
        ),
        ("beit_base_patch16_224", {}, "cannot be a branch"),
        ("vit_base_patch16_dinov3.in1k", {}, r"no weights .*\['vit_base_patch16_dinov3.lvd1689m'\]"),
        ("samvit_base_patch16", {"window_size": 14, **SAM}, "windows of their own"),
        (DINOV3, {"window_size": [4, 4, 4], **SMALL}, "3 window sizes for 2 blocks"),
        (DINOV3, {"window_size": 0, **SMALL}, "window size 0 is not a number of tokens"),
        (DINOV3, {"patch_drop_rate": 0.1}, "leaves holes"),
        (DINOV3, {"features_only": True}, "cannot be a branch as a FeatureGetterNet"),
    ],
)
def test_what_cannot_be(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TimmBranch(name, **options)


def test_tokens_cannot_be_forgotten() -> None:
    branch = small(DINOV3)
    with pytest.raises(ValueError, match="tokens beside its map"):
        branch.run_blocks(branch.embed(torch.randn(1, 3, 32, 32)), 0, 1)


def test_why_the_published_families_stay() -> None:
    """DeiT here and at timm: bit-equal at the grid of pretraining, not where positions are resized."""
    name = "deit3_small_patch16_224"
    ours = ViTBranch(embed_dim=32, depth=2, num_heads=2, class_token=True)
    theirs = small(name)
    ours.load_state_dict(theirs.model.state_dict(), strict=True)
    ours.eval()
    for side, same in ((224, True), (336, False), (112, False)):
        image = torch.randn(1, 3, side, side)
        with torch.inference_mode():
            a, b = (x.run_stage(*x.embed_tokens(image), 0, 1)[0] for x in (ours, theirs))
        assert torch.equal(a, b) if same else (a - b).abs().max() > 0.03  # 0.07 and 0.3 were seen
