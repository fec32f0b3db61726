"""Branch families against their definitions, written out here, and against timm."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from piip import PIIP
from piip.branches import BEiTBranch, ConvNeXtBranch, UniPerceiverBranch
from piip.branches.beit import BEiTAttention, relative_position_index
from piip.neck import PyramidBackbone, TappedPyramid, published_pyramid

from .models import TINY_INTERACTION, randomise, tiny_branch


def test_relative_position_index() -> None:
    """A 2x2 window: tokens (0,0) (0,1) (1,0) (1,1), offsets from -1 to 1, three to a row of the table."""
    expected = [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]
    assert relative_position_index(2).tolist() == expected


def dense_beit(attention: BEiTAttention, window: Tensor) -> Tensor:
    """Attention within one window ``(N, C)``, from the published table and index, one head at a time."""
    assert attention.window_size is not None
    index = relative_position_index(attention.window_size)
    dim = window.shape[1]
    weights = attention.qkv.weight.reshape(3, attention.num_heads, -1, dim)
    q_bias, v_bias = (b.reshape(attention.num_heads, -1) for b in (attention.q_bias, attention.v_bias))
    heads = []
    for head in range(attention.num_heads):
        q, k, v = (window @ weights[part, head].T for part in range(3))
        q, v = q + q_bias[head], v + v_bias[head]
        scores = q @ k.T * q.shape[1] ** -0.5 + attention.relative_position_bias_table[index, head]
        heads.append(scores.softmax(1) @ v)
    return attention.proj(torch.cat(heads, 1))


def test_beit_attention() -> None:
    """A 3x5 map in windows of 3: the second window is one third padding, which is attended to."""
    attention = randomise(BEiTAttention(16, 2, window_size=3)).double()
    x = torch.randn(1, 3, 5, 16, dtype=torch.float64)
    padded = torch.cat([x, torch.zeros(1, 3, 1, 16, dtype=torch.float64)], 2)
    windows = [
        dense_beit(attention, padded[0, :, i : i + 3].reshape(9, 16)).reshape(3, 3, 16) for i in (0, 3)
    ]
    expected = torch.cat(windows, 1)[None, :, :5]
    torch.testing.assert_close(attention(x), expected, rtol=0, atol=1e-12)  # rounding in float64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give each block a window size"),
        ({"window_size": 2, "qkv_bias": False}, "biases on queries"),
        ({"window_size": 2, "qk_norm": nn.LayerNorm}, "no norm"),
    ],
)
def test_beit_refuses_what_no_beit_has(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BEiTAttention(16, 2, **options)


def test_beit_has_no_position_embedding() -> None:
    branch = BEiTBranch(embed_dim=16, depth=2, num_heads=2, patch_size=4, window_sizes=[2, 3])
    assert branch.pos_embed is None
    tables = [block.attn.relative_position_bias_table.shape for block in branch.blocks]
    assert tables == [(9, 2), (25, 2)]
    image = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(branch.embed(image), branch.patch_embed(image).permute(0, 2, 3, 1))


def test_uni_perceiver_embedding() -> None:
    """Patches + resized table + first row of the temporal table, then a norm with eps 1e-5."""
    branch = UniPerceiverBranch(embed_dim=16, depth=1, num_heads=2, patch_size=4, pretrain_image_size=8)
    branch = randomise(branch).double()
    image = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    tokens = nn.functional.conv2d(
        image, branch.patch_embed.proj.weight, branch.patch_embed.proj.bias, stride=4
    )
    tokens = tokens.flatten(2).transpose(1, 2) + branch.pos_embed + branch.temporal_embed[0]
    mean, variance = tokens.mean(-1, keepdim=True), tokens.var(-1, keepdim=True, unbiased=False)
    expected = (tokens - mean) / (variance + 1e-5).sqrt() * branch.embed_norm.weight + branch.embed_norm.bias
    torch.testing.assert_close(branch.embed(image).flatten(1, 2), expected, rtol=0, atol=1e-12)
    assert {norm.eps for norm in branch.modules() if isinstance(norm, nn.LayerNorm)} == {1e-5}


def test_uni_perceiver_starts_as_its_embedding() -> None:
    """Its residual scales start at 0 and are there to be trained."""
    branch = UniPerceiverBranch(embed_dim=16, depth=2, num_heads=2, patch_size=4, pretrain_image_size=8)
    tokens = branch.embed(torch.randn(1, 3, 8, 8))
    torch.testing.assert_close(branch.run_blocks(tokens, 0, 1), tokens)
    assert all(block.ls1.gamma.requires_grad for block in branch.blocks)


def tiny_convnext() -> ConvNeXtBranch:
    return ConvNeXtBranch(dims=(32, 32, 64, 96), depths=(1, 2, 1, 1))


def test_convnext_is_timm() -> None:
    """The same names, the same numbers after every stage; odd sizes lose their last row as timm's do."""
    reference = timm.create_model("convnext_atto", dims=(32, 48, 64, 96), depths=(1, 2, 1, 1), conv_mlp=False)
    branch = ConvNeXtBranch(dims=(32, 48, 64, 96), depths=(1, 2, 1, 1))
    state = {k.replace("head.norm.", "norm."): v for k, v in randomise(reference).state_dict().items()}
    branch.load_state_dict({k: v for k, v in state.items() if not k.startswith("head.")}, strict=True)
    image = torch.randn(2, 3, 72, 100)
    expected = reference.forward_intermediates(image, intermediates_only=True)
    x = branch.embed(image)
    for stage, ((first, last), y) in enumerate(zip(branch.stage_blocks(), expected, strict=True)):
        x = branch.run_blocks(x, first, last)
        torch.testing.assert_close(x.permute(0, 3, 1, 2), y, rtol=1e-4, atol=1e-4)  # float32, ten layers
        assert branch.channels(last) == y.shape[1] and branch.stride(last) == 4 * 2**stage
    assert branch.stage_blocks() == [(0, 0), (1, 3), (4, 5), (6, 7)]


def test_convnext_of_equal_widths_halves_too() -> None:
    branch = tiny_convnext()
    assert branch.depth == 8
    assert [branch.stride(block) for block in range(8)] == [4, 8, 8, 8, 16, 16, 32, 32]


def test_convnext_takes_no_part_in_layer_decay() -> None:
    branch = tiny_convnext()
    assert {branch.decay_depth(name) for name, _ in branch.named_parameters()} == {None}
    assert not branch.norm.weight.requires_grad  # carried along, never used


@pytest.mark.parametrize(
    ("names", "strides", "pyramid"),
    [
        ("vc", [4, 8, 16, 32], TappedPyramid),  # large image through ConvNeXt: a pyramid already
        ("cv", [4, 8, 16, 32], None),
    ],
)
def test_mixed_pyramid(names: str, strides: list[int], pyramid: type | None) -> None:
    """ConvNeXt and ViT side by side; width and grid follow the stage."""
    build = {"c": tiny_convnext, "v": lambda: tiny_branch(64, 4, patch_size=16)}
    ranges = {"c": [(0, 0), (1, 3), (4, 5), (6, 7)], "v": [(i, i) for i in range(4)]}
    piip = PIIP(
        [build[name]() for name in names],
        [64, 128],
        stages=[ranges[name] for name in names],
        interaction=TINY_INTERACTION,
        merge="single_conv",
        tap_stages=(0, 1, 2),
    )
    backbone = randomise(PyramidBackbone(piip, published_pyramid(piip)))
    assert isinstance(backbone.pyramid, TappedPyramid) == (pyramid is TappedPyramid)
    assert list(backbone.level_strides().values()) == strides
    with torch.inference_mode():
        levels = backbone(torch.randn(1, 3, 128, 192))
    for name, stride in backbone.level_strides().items():
        assert levels[name].shape == (1, backbone.level_channels()[name], 128 // stride, 192 // stride)
