"""Weights of single models in the branches, each conversion against numbers worked out here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from scipy.optimize import brentq
from torch import Tensor, nn

from piip import PIIP
from piip.branches import (
    BEiTBranch,
    Branch,
    CLIPBranch,
    ConvNeXtBranch,
    Pretrained,
    UniPerceiverBranch,
    ViTBranch,
)
from piip.weights.pretrained import convert_branch, load_pretrained, resize_relative_positions

from ..models import TINY_INTERACTION, randomise

SIZES: dict[str, Any] = {"embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 2}
FEATURES_TOLERANCE = 1e-5  # float32 through two blocks of width 16


def cubic(distance: np.ndarray) -> np.ndarray:
    """Kernel of cubic convolution with a = -0.75, which PyTorch uses."""
    a, d = -0.75, np.abs(distance)
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * (d**3 - 5 * d**2 + 8 * d - 4)
    return np.where(d <= 1, near, np.where(d < 2, far, 0))


def bicubic_matrix(old: int, new: int) -> np.ndarray:
    """Resizing along one axis, a (new, old) matrix: half-pixel centres, borders repeated, no antialiasing."""
    matrix = np.zeros((new, old))
    for row in range(new):
        position = (row + 0.5) * old / new - 0.5
        for tap in range(int(np.floor(position)) - 1, int(np.floor(position)) + 3):
            matrix[row, np.clip(tap, 0, old - 1)] += cubic(np.array(position - tap))
    return matrix


def resized(grid: Tensor, size: int) -> Tensor:
    """``(h, w, ...)`` -> ``(size, size, ...)`` bicubic."""
    matrix = torch.from_numpy(bicubic_matrix(grid.shape[0], size)).float()
    return torch.einsum("ih,jw,hw...->ij...", matrix, matrix, grid)


def vit_file(image: int, patch: int, *, cls: bool = True, gamma: str = "") -> dict[str, Tensor]:
    """Weights as DeiT, MAE and DINOv2 name them; ``gamma`` is the template of the layer scales' names."""
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=image,
        patch_size=patch,
        num_classes=5,
        no_embed_class=not cls,
        init_values=1.0 if gamma else None,
        **SIZES,
    )
    state = dict(randomise(model).state_dict())
    for key in [key for key in state if ".ls" in key]:
        _, block, scale, _ = key.split(".")
        state[gamma.format(block=block, number=scale[2:])] = state.pop(key)
    return state


def branch(image: int = 64, patch: int = 16, **options: Any) -> ViTBranch:
    return randomise(ViTBranch(pretrain_image_size=image, patch_size=patch, **SIZES, **options), seed=9)


def loaded(target: Branch, state: dict[str, Tensor], family: Any) -> Branch:
    target.load_state_dict(convert_branch(state, target, family, "file.pth"), strict=True)
    return target.eval()


def run(target: Branch, image: Tensor) -> Tensor:
    return target.run_blocks(target.embed(image), 0, target.depth - 1)


def timm_tokens(state: dict[str, Tensor], image: Tensor, *, cls: bool) -> Tensor:
    """Patch tokens after the last block of timm's model on these weights, with no class token about."""
    size, gammas = image.shape[-1], any(".ls1." in key for key in state)
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=size,
        patch_size=16,
        num_classes=5,
        class_token=False,
        global_pool="avg",
        init_values=1.0 if gammas else None,
        **SIZES,
    )
    state = {k: v for k, v in state.items() if not k.startswith(("norm", "head", "cls"))}
    state["pos_embed"] = state["pos_embed"][:, int(cls) :]
    assert not model.load_state_dict(state, strict=False).unexpected_keys
    x = model.blocks(model.pos_drop(model.patch_embed(image) + model.pos_embed))
    return x.reshape(x.shape[0], size // 16, size // 16, -1)


@pytest.mark.parametrize(
    ("family", "cls", "gamma"),
    [
        ("deit", True, ""),
        ("deit3", False, "blocks.{block}.gamma_{number}"),
        ("deit3", False, "blocks.{block}.ls{number}.gamma"),  # timm's name
        ("augreg", True, ""),
        ("mae", True, ""),
    ],
)
def test_plain_transformers(family: str, cls: bool, gamma: str) -> None:
    """Same grid, same patches: the branch computes what timm's model does without class token."""
    state = vit_file(64, 16, cls=cls, gamma=gamma)
    ours = loaded(ViTBranch(pretrain_image_size=64, **SIZES), state, family)
    image = torch.randn(1, 3, 64, 64)
    named = {k.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma"): v for k, v in state.items()}
    with torch.inference_mode():
        expected = timm_tokens(named, image, cls=cls)
        torch.testing.assert_close(run(ours, image), expected, rtol=0, atol=FEATURES_TOLERANCE)


def test_layer_scale_absent_from_the_file_stays_one() -> None:
    converted = convert_branch(
        vit_file(64, 16), ViTBranch(pretrain_image_size=64, **SIZES), "deit", "file.pth"
    )
    assert torch.equal(converted["blocks.1.ls2.gamma"], torch.ones(16))


@pytest.mark.parametrize("keep_cls", [False, True])
@pytest.mark.parametrize("has_cls", [False, True])
def test_position_embedding(keep_cls: bool, has_cls: bool) -> None:
    """From a grid of 5 rows (70 px, patches of 14) to one of 4 (64 px, patches of 16), as for DINOv2."""
    state = vit_file(70, 14, cls=has_cls, gamma="blocks.{block}.ls{number}.gamma")
    target = branch(pos_embed_has_cls=keep_cls)
    converted = convert_branch(state, target, "dinov2", "file.pth")
    table = state["pos_embed"][0]
    grid = resized(table[int(has_cls) :].reshape(5, 5, 16), 4).flatten(0, 1)
    torch.testing.assert_close(converted["pos_embed"][0, int(keep_cls) :], grid, rtol=0, atol=1e-5)
    if keep_cls:
        assert torch.equal(converted["pos_embed"][0, 0], table[0] if has_cls else torch.zeros(16))


def test_patch_kernel() -> None:
    """From 14x14 to 16x16 pixels: bicubic, and not rescaled."""
    state = vit_file(56, 14, gamma="blocks.{block}.ls{number}.gamma")
    converted = convert_branch(state, branch(), "dinov2", "file.pth")
    kernel = state["patch_embed.proj.weight"].permute(2, 3, 0, 1)
    expected = resized(kernel, 16).permute(2, 3, 0, 1)
    torch.testing.assert_close(converted["patch_embed.proj.weight"], expected, rtol=0, atol=1e-5)


def test_masked_autoencoder_from_14_to_16() -> None:
    """MAE-H in small: patches of 14, a grid of 16 rows from 224 px, becomes patches of 16 and 14 rows."""
    state = vit_file(224, 14)
    state["decoder_embed.weight"], state["mask_token"] = torch.ones(3, 3), torch.ones(1, 1, 3)
    converted = convert_branch(state, branch(224, pos_embed_has_cls=True), "mae", "file.pth")
    assert converted["pos_embed"].shape == (1, 197, 16)
    grid = resized(state["pos_embed"][0, 1:].reshape(16, 16, 16), 14).flatten(0, 1)
    torch.testing.assert_close(converted["pos_embed"][0, 1:], grid, rtol=0, atol=1e-5)


def flax_file(path: Path, seed: int = 0) -> None:
    """An AugReg file: (in, out) kernels, heads in axes of their own, patches (h, w, in, out)."""
    random = np.random.default_rng(seed)

    def array(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(np.float32) * 0.3

    arrays = {
        "embedding/kernel": array(16, 16, 3, 16),
        "embedding/bias": array(16),
        "cls": array(1, 1, 16),
        "Transformer/posembed_input/pos_embedding": array(1, 17, 16),
        "Transformer/encoder_norm/scale": array(16),
        "Transformer/encoder_norm/bias": array(16),
        "head/kernel": array(16, 5),
        "head/bias": array(5),
    }
    for block in range(2):
        root = f"Transformer/encoderblock_{block}"
        attention = f"{root}/MultiHeadDotProductAttention_1"
        for part in ("query", "key", "value"):
            arrays[f"{attention}/{part}/kernel"] = array(16, 2, 8)
            arrays[f"{attention}/{part}/bias"] = array(2, 8)
        arrays[f"{attention}/out/kernel"], arrays[f"{attention}/out/bias"] = array(2, 8, 16), array(16)
        for norm in ("LayerNorm_0", "LayerNorm_2"):
            arrays[f"{root}/{norm}/scale"], arrays[f"{root}/{norm}/bias"] = array(16), array(16)
        for name, sizes in (("Dense_0", (16, 32)), ("Dense_1", (32, 16))):
            arrays[f"{root}/MlpBlock_3/{name}/kernel"] = array(*sizes)
            arrays[f"{root}/MlpBlock_3/{name}/bias"] = array(sizes[1])
    np.savez(path, **arrays)


def test_flax_layout(tmp_path: Path) -> None:
    """Against timm's own reader of these files."""
    flax_file(tmp_path / "augreg.npz")
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=64, patch_size=16, num_classes=5, **SIZES
    )
    model.load_pretrained(str(tmp_path / "augreg.npz"))
    source = str(tmp_path / "augreg.npz")
    ours = ViTBranch(pretrain_image_size=64, pretrained=Pretrained(source=source, family="augreg"), **SIZES)
    load_pretrained(ours)
    expected = convert_branch(dict(model.state_dict()), ours, "augreg", "timm")
    assert all(torch.equal(value, expected[key]) for key, value in ours.state_dict().items())


def beit_offsets(old: int, new: int) -> np.ndarray:
    """Offsets of a table of ``old`` rows in BEiT's code: gaps 1, q, q^2, ... that add up to ``new // 2``."""
    steps = old // 2
    q = brentq(lambda q: sum(q**i for i in range(steps)) - new // 2, 1.01, 1.5)
    positive = np.cumsum([q**i for i in range(steps)])
    return np.concatenate([-positive[::-1], [0], positive])


@pytest.mark.parametrize(("old", "window"), [(14, 28), (5, 7)])
def test_relative_positions(old: int, window: int) -> None:
    """A cubic spline gives cubic functions back: f(y, x) at BEiT's offsets must become f at whole offsets."""
    rows, new = 2 * old - 1, 2 * window - 1

    def f(y: np.ndarray, x: np.ndarray) -> np.ndarray:
        return np.stack([y + 2 * x, (y / 5) ** 3 - (x / 5) ** 2 * y / 5 + 1], -1)

    y, x = np.meshgrid(*[beit_offsets(rows, new)] * 2, indexing="ij")
    table = torch.from_numpy(f(y, x)).float().flatten(0, 1)
    table = torch.cat([table, torch.full((3, 2), 1e6)])  # the class token's rows
    whole = np.arange(new) - new // 2
    expected = torch.from_numpy(f(*np.meshgrid(whole, whole, indexing="ij"))).float().flatten(0, 1)
    # q is found to 1e-6 and the last offset moves by up to 1e-3 for it, as in BEiT's code
    torch.testing.assert_close(resize_relative_positions(table, window), expected, rtol=0, atol=2e-2)


def test_relative_positions_of_the_same_window_stay() -> None:
    table = torch.randn(9, 2)
    assert torch.equal(resize_relative_positions(torch.cat([table, torch.ones(3, 2)]), 2), table)


def beit_file(shared: bool) -> dict[str, Tensor]:
    model = timm.models.beit.Beit(
        img_size=64,
        patch_size=16,
        num_classes=5,
        use_abs_pos_emb=False,
        use_rel_pos_bias=True,
        init_values=1.0,
        **SIZES,
    )
    state = dict(randomise(model).state_dict())
    for block in range(2):  # buffers that BEiT's files have
        state[f"blocks.{block}.attn.relative_position_index"] = torch.zeros(17, 17, dtype=torch.int64)
    if shared:
        table = "attn.relative_position_bias_table"
        state["rel_pos_bias.relative_position_bias_table"] = state.pop(f"blocks.0.{table}")
        del state[f"blocks.1.{table}"]
        state["mask_token"] = torch.zeros(1, 1, 16)
    return state


@pytest.mark.parametrize("shared", [False, True])
def test_beit(shared: bool) -> None:
    """timm's names are BEiT's; the table of 4x4 patches serves windows of 4; one for all, or each its own."""
    state = beit_file(shared)
    target = BEiTBranch(window_sizes=4, **SIZES)
    converted = convert_branch(state, target, "beitv2", "file.pth")
    for block in range(2):
        own = f"blocks.{block}.attn.relative_position_bias_table"
        theirs = state["rel_pos_bias.relative_position_bias_table" if shared else own]
        assert torch.equal(converted[own], theirs[:49])
        assert torch.equal(converted[f"blocks.{block}.attn.q_bias"], state[f"blocks.{block}.attn.q_bias"])
        assert torch.equal(converted[f"blocks.{block}.ls1.gamma"], state[f"blocks.{block}.gamma_1"])


def renamed(state: dict[str, Tensor], rules: list[tuple[str, str]]) -> dict[str, Tensor]:
    """Every name by the one rule that it matches."""
    result = {}
    for key, value in state.items():
        (name,) = [re.sub(pattern, to, key) for pattern, to in rules if re.fullmatch(pattern, key)]
        result[name] = value
    return result


def test_uni_perceiver() -> None:
    """Names as published, the image half of the file only; tables are resized like position embeddings."""
    target = UniPerceiverBranch(pretrain_image_size=64, **SIZES)
    source = randomise(UniPerceiverBranch(pretrain_image_size=96, **SIZES)).state_dict()
    rules = [
        (r"blocks\.(\d)\.ls(\d)\.gamma", r"layers.\1.gamma_\2"),
        (r"blocks\.(\d)\.norm(.+)", r"layers.\1.norm\2"),
        (r"blocks\.(\d)\.attn\.qkv(.+)", r"layers.\1.self_attn.in_proj\2"),
        (r"blocks\.(\d)\.attn\.proj(.+)", r"layers.\1.self_attn.out_proj\2"),
        (r"blocks\.(\d)\.mlp\.fc(.+)", r"layers.\1.linear\2"),
        (r"patch_embed(.+)", r"visual_embed.patch_embed\1"),
        (r"pos_embed", r"visual_embed.patch_embed.spatial_pos_embed.weight"),
        (r"temporal_embed", r"visual_embed.patch_embed.temporal_pos_embed.weight"),
        (r"embed_norm(.+)", r"visual_embed.embeddings_norm\1"),
    ]
    published = renamed(source, rules)
    published["token_embed.embeddings.weight"] = torch.ones(7, 16)
    converted = convert_branch(published, target, "uni_perceiver", "file.pth")
    table = resized(source["pos_embed"].reshape(6, 6, 16), 4).flatten(0, 1)
    torch.testing.assert_close(converted["pos_embed"], table, rtol=0, atol=1e-5)
    for key in source.keys() - {"pos_embed"}:
        assert torch.equal(converted[key], source[key]), key


def test_internvit() -> None:
    """RMS norms without bias, a joint projection without bias, norms on queries and keys; 14 px to 16."""
    options: dict[str, Any] = {
        "norm": "rms_norm",
        "qk_norm": True,
        "qkv_bias": False,
        "pos_embed_has_cls": True,
    }
    source = ViTBranch(pretrain_image_size=70, patch_size=14, **SIZES, **options)
    state = dict(randomise(source).state_dict())
    state["cls_token"], state["clip_projector.norm1_q.weight"] = torch.ones(1, 1, 16), torch.ones(16)
    target = ViTBranch(pretrain_image_size=64, **SIZES, **options)
    converted = convert_branch(state, target, "internvit", "file.pth")
    assert torch.equal(converted["blocks.1.attn.k_norm.weight"], state["blocks.1.attn.k_norm.weight"])
    assert torch.equal(converted["pos_embed"][0, 0], state["pos_embed"][0, 0])


def test_internvit_6b_on_the_meta_device() -> None:
    """The 5.9 billion parameters of InternViT-6B at 224 px in patches of 14, converted for patches of 16."""
    sizes: dict[str, Any] = {"embed_dim": 3200, "depth": 48, "num_heads": 25}
    options = {"norm": "rms_norm", "qk_norm": True, "qkv_bias": False, "pos_embed_has_cls": True}
    with torch.device("meta"):
        source = ViTBranch(patch_size=14, **sizes, **options)
        target = ViTBranch(**sizes, **options)
    converted = convert_branch(dict(source.state_dict()), target, "internvit", "file.pth")
    assert converted["pos_embed"].shape == (1, 197, 3200)
    assert converted["patch_embed.proj.weight"].shape == (3200, 3, 16, 16)
    assert sum(value.numel() for value in converted.values()) == 5_903_174_400  # the published count


@pytest.mark.parametrize("layout", ["timm", "hugging face"])
def test_convnext(layout: str) -> None:
    sizes: dict[str, Any] = {"dims": (16, 24, 32, 48), "depths": (1, 1, 2, 1)}
    state = dict(randomise(ConvNeXtBranch(**sizes)).state_dict())
    if layout == "timm":
        file = {k.replace("norm.", "head.norm.") if k.startswith("norm.") else k: v for k, v in state.items()}
        file["head.fc.weight"] = torch.ones(5, 48)
    else:
        block, layer = r"stages\.(\d)\.blocks\.(\d)", r"convnext.encoder.stages.\1.layers.\2"
        rules = [
            (r"stem\.0(.+)", r"convnext.embeddings.patch_embeddings\1"),
            (r"stem\.1(.+)", r"convnext.embeddings.layernorm\1"),
            (r"stages\.(\d)\.downsample(.+)", r"convnext.encoder.stages.\1.downsampling_layer\2"),
            (rf"{block}\.gamma", rf"{layer}.layer_scale_parameter"),
            (rf"{block}\.conv_dw(.+)", rf"{layer}.dwconv\3"),
            (rf"{block}\.norm(.+)", rf"{layer}.layernorm\3"),
            (rf"{block}\.mlp\.fc(.+)", rf"{layer}.pwconv\3"),
            (r"norm(.+)", r"convnext.layernorm\1"),
        ]  # fmt: skip
        file = renamed(state, rules)
        file["classifier.weight"] = torch.ones(5, 48)
    converted = convert_branch(file, ConvNeXtBranch(**sizes), "convnext", "file.pth")
    assert converted.keys() == state.keys()
    assert all(torch.equal(converted[key], state[key]) for key in state)


def test_bfloat16_becomes_float32() -> None:
    state = {key: value.bfloat16() for key, value in vit_file(64, 16).items()}
    converted = convert_branch(state, branch(), "deit", "file.pth")
    assert {value.dtype for value in converted.values()} == {torch.float32}
    assert torch.equal(converted["blocks.0.mlp.fc1.bias"], state["blocks.0.mlp.fc1.bias"].float())


def corrupted(change: str) -> dict[str, Tensor]:
    state = vit_file(64, 16)
    key = "blocks.1.mlp.fc1.bias"
    if change == "missing":
        del state[key]
    elif change == "unknown":
        state["blocks.1.extra"] = state[key]
    elif change == "NaN":
        state[key][3] = torch.nan
    elif change == "dtype":
        state[key] = state[key].int()
    elif change == "positions":
        state["pos_embed"] = state["pos_embed"][:, :-2]
    elif change == "gamma":
        state = vit_file(64, 16, gamma="blocks.{block}.gamma_{number}")
        state = {key: value for key, value in state.items() if "gamma_2" not in key}
    return state


@pytest.mark.parametrize(
    ("change", "family", "message"),
    [
        ("missing", "deit", r"branch1.pth does not fit .* 1 tensors differ: blocks\.1\.mlp\.fc1\.bias is"),
        ("unknown", "deit", r"branch1.pth does not hold .*'deit'.* blocks\.1\.extra"),
        ("NaN", "deit", r"branch1.pth: blocks\.1\.mlp\.fc1\.bias holds NaN"),
        ("dtype", "deit", r"branch1.pth .*: blocks\.1\.mlp\.fc1\.bias is of torch\.int32, expected"),
        ("positions", "deit", r"branch1.pth .* pos_embed has 15 rows, expected a square number and 1 more"),
        ("gamma", "deit3", r"2 tensors differ: blocks\.0\.ls2\.gamma is missing; blocks\.1\.ls2\.gamma is"),
        ("", "deit3", r"4 tensors differ: blocks\.0\.ls1\.gamma is missing"),
    ],
)  # fmt: skip
def test_failures_name_file_and_tensor(change: str, family: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert_branch(corrupted(change), branch(), family, "branch1.pth")


def test_a_file_of_another_size() -> None:
    with pytest.raises(ValueError, match=r"blocks\.0\.norm1\.weight has shape \(16,\), expected \(24,\)"):
        wide = ViTBranch(pretrain_image_size=64, **{**SIZES, "embed_dim": 24})
        convert_branch(vit_file(64, 16), wide, "deit", "file.pth")


def test_unknown_family() -> None:
    with pytest.raises(ValueError, match=r"unknown family 'resnet' of x\.pth: expected one of .*'deit3'"):
        Pretrained(source="x.pth", family="resnet")  # type: ignore[arg-type]


def two_branches(*sources: str) -> PIIP:
    branches = [
        ViTBranch(pretrain_image_size=64, pretrained=Pretrained(source=source, family="deit"), **SIZES)
        for source in sources
    ]
    return PIIP(branches, [32, 64], num_interactions=2, interaction=TINY_INTERACTION, merge="identity")


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def test_loading_all_or_nothing(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.pth", tmp_path / "bad.pth"
    state = vit_file(64, 16)
    torch.save({"model": state}, good)
    torch.save({"model": corrupted("NaN")}, bad)
    model = two_branches(str(good), str(bad))
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"branches\.1: .*bad\.pth"):
        load_pretrained(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    model = two_branches(str(good), str(good))
    assert load_pretrained(model) == ["branches.0", "branches.1"]
    assert torch.equal(model.branches[1].pos_embed, state["pos_embed"][:, 1:])


def test_building_loads_nothing() -> None:
    two_branches("no/such/file.pth", "timm:no_such_model")


def test_timm_source(monkeypatch: pytest.MonkeyPatch) -> None:
    published = timm.models.vision_transformer.VisionTransformer(img_size=64, num_classes=5, **SIZES)

    def create(name: str, pretrained: bool) -> nn.Module:
        assert (name, pretrained) == ("vit_tiny_patch16_224.fb_in1k", True)
        return published

    monkeypatch.setattr("piip.weights.pretrained.timm.create_model", create)
    model = two_branches(*["timm:vit_tiny_patch16_224.fb_in1k"] * 2)
    load_pretrained(model)
    expected = published.blocks[0].attn.qkv.weight
    assert torch.equal(model.branches[0].blocks[0].attn.qkv.weight, expected)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("no/such/file.pth", FileNotFoundError, "no/such/file.pth does not exist"),
        ("timm:no_such_model", ValueError, r"cannot get timm:no_such_model \(Unknown model"),
    ],
)
def test_sources_that_are_not_there(source: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_pretrained(two_branches(source, source))


def test_clip_by_the_names_of_hugging_face() -> None:
    """The image half of a whole CLIP; a kernel of another size is resized, positions are kept as they are."""
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_layers": 2, "num_heads": 2}
    target = CLIPBranch(**sizes, image_size=32, patch_size=16, pretrain_patch_size=8)
    published = randomise(CLIPBranch(**sizes, image_size=32, patch_size=8))
    file = {
        f"vision_model.{key.replace('blocks.', 'encoder.layers.')}": value
        for key, value in published.state_dict().items()
    }
    others = {"logit_scale": torch.ones(()), "text_model.embeddings.position_ids": torch.arange(4)}
    ids = {"vision_model.embeddings.position_ids": torch.arange(17)}
    state = convert_branch({**file, **others, **ids}, target, "clip", "clip.safetensors")
    target.load_state_dict(state, strict=True)
    kernel = published.embeddings.patch_embedding.weight.permute(2, 3, 0, 1)
    torch.testing.assert_close(
        target.embeddings.patch_embedding.weight.permute(2, 3, 0, 1), resized(kernel, 16), rtol=0, atol=1e-5
    )
    assert torch.equal(state["blocks.1.mlp.fc1.weight"], published.blocks[1].mlp.fc1.weight)
    with pytest.raises(ValueError, match=r"pre_layrnorm\.bias is missing"):
        convert_branch(
            {k: v for k, v in file.items() if "pre_layrnorm.bias" not in k}, target, "clip", "a.bin"
        )
