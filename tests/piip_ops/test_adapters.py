"""Other projects' models give the same numbers with the operator in the place of their own code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from piip_ops import adapters, ms_deform_attn_reference

SHAPES = [(6, 4), (3, 2)]
TOLERANCE = 1e-5  # of the largest value: float32 sums in another order


def close(a: Tensor, b: Tensor) -> bool:
    a, b = a.detach(), b.detach()
    return bool((a - b).abs().max() <= TOLERANCE * max(1.0, float(b.abs().max())))


def problem(
    batch: int = 2, heads: int = 3, channels: int = 4, queries: int = 5, points: int = 4
) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    length, levels = sum(h * w for h, w in SHAPES), len(SHAPES)
    value = torch.randn(batch, length, heads, channels, generator=random)
    locations = torch.rand(batch, queries, heads, levels, points, 2, generator=random) * 1.4 - 0.2
    weights = torch.rand(batch, queries, heads, levels * points, generator=random).softmax(-1)
    return [value, locations, weights.unflatten(3, (levels, points))]


# --- Hugging Face transformers
# -----------------------------------------------------------------------------------


def deformable_detr() -> nn.Module:
    from transformers import DeformableDetrConfig, DeformableDetrModel, ResNetConfig

    backbone = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 1, 1],
        out_features=["stage2", "stage3", "stage4"],
    )
    return DeformableDetrModel(
        DeformableDetrConfig(
            use_timm_backbone=False,
            backbone=None,
            backbone_config=backbone,
            num_queries=6,
            d_model=32,
            encoder_layers=1,
            decoder_layers=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            num_feature_levels=4,
            dropout=0.0,
        )
    )


def rt_detr() -> nn.Module:
    from transformers import RTDetrConfig, RTDetrModel, RTDetrResNetConfig

    backbone = RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    return RTDetrModel(
        RTDetrConfig(
            backbone=None,
            backbone_config=backbone,
            encoder_hidden_dim=32,
            encoder_in_channels=[16, 24, 32],
            encoder_ffn_dim=32,
            encoder_attention_heads=2,
            d_model=32,
            num_queries=6,
            decoder_in_channels=[32, 32, 32],
            decoder_ffn_dim=32,
            decoder_layers=2,
            decoder_attention_heads=2,
            num_denoising=0,
        )
    )


def d_fine() -> nn.Module:
    from transformers import DFineConfig, DFineModel, HGNetV2Config

    backbone = HGNetV2Config(
        hidden_sizes=[8, 16, 16, 32],
        stage_in_channels=[8, 8, 16, 16],
        stage_mid_channels=[4, 4, 8, 8],
        stage_out_channels=[8, 16, 16, 32],
        stage_num_blocks=[1, 1, 1, 1],
        stage_downsample=[False, True, True, True],
        stage_light_block=[False, False, True, True],
        stage_kernel_size=[3, 3, 3, 3],
        stage_numb_of_layers=[1, 1, 1, 1],
        stem_channels=[3, 4, 8],
        out_features=["stage2", "stage3", "stage4"],
    )
    return DFineModel(
        DFineConfig(
            backbone=None,
            backbone_config=backbone,
            encoder_hidden_dim=32,
            encoder_in_channels=[16, 16, 32],
            encoder_ffn_dim=32,
            encoder_attention_heads=2,
            d_model=32,
            num_queries=6,
            decoder_in_channels=[32, 32, 32],
            decoder_ffn_dim=32,
            decoder_layers=2,
            decoder_attention_heads=2,
            decoder_n_points=[3, 6, 3],
            num_denoising=0,
        )
    )


def mask2former() -> nn.Module:
    from transformers import Mask2FormerConfig, Mask2FormerModel, SwinConfig

    backbone = SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    return Mask2FormerModel(
        Mask2FormerConfig(
            backbone_config=backbone,
            feature_size=32,
            mask_feature_size=32,
            hidden_dim=32,
            encoder_feedforward_dim=32,
            encoder_layers=1,
            decoder_layers=2,
            num_attention_heads=4,
            dim_feedforward=32,
            num_queries=6,
            dropout=0.0,
        )
    )


def forward_and_gradients(
    model: nn.Module, run: Callable[..., object] | None = None
) -> tuple[Tensor, list[Tensor]]:
    """The last hidden state, and the gradients of all parameters."""
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    output = (model if run is None else run)(pixel_values=images)
    state = getattr(output, "last_hidden_state", None)
    state = output.transformer_decoder_last_hidden_state if state is None else state
    model.zero_grad()
    state.square().mean().backward()
    return state.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


MODELS = [deformable_detr, rt_detr, d_fine, mask2former]


def random_model(build: Callable[[], nn.Module]) -> nn.Module:
    """In evaluation mode; offsets and attention weights, which start at zero, are random as well."""
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = build().eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.1)
    return model


@pytest.mark.parametrize("build", MODELS)
def test_models_of_transformers(build: Callable[[], nn.Module]) -> None:
    """Forward and backward, before and after; and once more as they were."""
    model = random_model(build)
    expected, gradients = forward_and_gradients(model)
    replaced = adapters.transformers(model)
    output, own = forward_and_gradients(model)
    assert close(output, expected)
    assert len(own) == len(gradients)
    assert all(close(a, b) for a, b in zip(own, gradients, strict=True))
    adapters.restore(replaced)
    again, _ = forward_and_gradients(model)
    assert torch.equal(again, expected)


@pytest.mark.slow
@pytest.mark.parametrize("build", MODELS)
def test_compiled_models_of_transformers(build: Callable[[], nn.Module]) -> None:
    """Against the compiled original: compilation alone moves some of them by more than rounding."""
    model = random_model(build)
    expected, gradients = forward_and_gradients(model, torch.compile(model))
    torch.compiler.reset()
    replaced = adapters.transformers(model)
    output, own = forward_and_gradients(model, torch.compile(model))
    adapters.restore(replaced)
    assert close(output, expected)
    assert all(close(a, b) for a, b in zip(own, gradients, strict=True))


def test_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear has no deformable attention of transformers"):
        adapters.transformers(nn.Linear(2, 2))


# --- signatures written out, of what is not installed here
# -------------------------------------------------------


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **attributes: object) -> ModuleType:
    """A module, with the packages above it, that is imported in place of one that is not installed."""
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        module = ModuleType(".".join(parts[:depth]))
        module.__path__ = []
        monkeypatch.setitem(sys.modules, module.__name__, module)
    vars(module).update(attributes)
    return module


def test_mmcv(monkeypatch: pytest.MonkeyPatch) -> None:
    """`MultiScaleDeformableAttnFunction.apply(value, spatial_shapes, level_start_index, locations,
    weights, step)`."""
    own = object()
    module = stand_in(
        monkeypatch,
        "mmcv.ops.multi_scale_deform_attn",
        MultiScaleDeformableAttnFunction=own,
        multi_scale_deformable_attn_pytorch=own,
    )
    replaced = adapters.mmcv()
    value, locations, weights = problem()
    expected = ms_deform_attn_reference(value, SHAPES, locations, weights)
    shapes, start = torch.tensor(SHAPES), torch.tensor([0, 24])
    output = module.MultiScaleDeformableAttnFunction.apply(value, shapes, start, locations, weights, 64)
    assert close(output, expected)
    assert close(module.multi_scale_deformable_attn_pytorch(value, shapes, locations, weights), expected)
    adapters.restore(replaced)
    assert module.MultiScaleDeformableAttnFunction is own


@pytest.mark.parametrize(
    ("adapter", "name"),
    [
        (adapters.mask2former, "mask2former.modeling.pixel_decoder.ops.modules.ms_deform_attn"),
        (adapters.mask_dino, "maskdino.modeling.pixel_decoder.ops.modules.ms_deform_attn"),
    ],
)
def test_projects_of_detectron2(
    monkeypatch: pytest.MonkeyPatch, adapter: Callable[[], list[adapters.Replaced]], name: str
) -> None:
    """Deformable DETR's file, of which Mask2Former and MaskDINO have a copy."""
    own = object()
    module = stand_in(monkeypatch, name, MSDeformAttnFunction=own, ms_deform_attn_core_pytorch=own)
    replaced = adapter()
    value, locations, weights = problem()
    arguments = (value, torch.tensor(SHAPES), torch.tensor([0, 24]), locations, weights, 128)
    expected = ms_deform_attn_reference(value, SHAPES, locations, weights)
    assert close(module.MSDeformAttnFunction.apply(*arguments), expected)
    assert close(
        module.ms_deform_attn_core_pytorch(value, torch.tensor(SHAPES), locations, weights), expected
    )
    adapters.restore(replaced)
    assert module.MSDeformAttnFunction is own
    assert "MultiScaleDeformableAttention" not in sys.modules


def test_a_file_without_the_function_is_refused() -> None:
    with pytest.raises(ValueError, match="sys has no MSDeformAttnFunction"):
        adapters.deformable_detr(sys)


def test_extension() -> None:
    """An autograd function over `ms_deform_attn_forward` and `_backward` as Deformable DETR has it."""
    replaced = adapters.extension()
    extension = sys.modules["MultiScaleDeformableAttention"]

    class Attention(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value, shapes, start, locations, weights, step):
            ctx.save_for_backward(value, shapes, start, locations, weights)
            ctx.step = step
            return extension.ms_deform_attn_forward(value, shapes, start, locations, weights, step)

        @staticmethod
        def backward(ctx, grad_output):
            value, locations, weights = extension.ms_deform_attn_backward(
                *ctx.saved_tensors, grad_output, ctx.step
            )
            return value, None, None, locations, weights, None

    inputs = [x.requires_grad_() for x in problem()]
    expected = ms_deform_attn_reference(inputs[0], SHAPES, *inputs[1:])
    gradients = torch.autograd.grad(expected.square().sum(), inputs)
    output = Attention.apply(inputs[0], torch.tensor(SHAPES), torch.tensor([0, 24]), *inputs[1:], 64)
    assert close(output, expected)
    own = torch.autograd.grad(output.square().sum(), inputs)
    assert all(close(a, b) for a, b in zip(own, gradients, strict=True))
    adapters.restore(replaced)
    assert "MultiScaleDeformableAttention" not in sys.modules


@pytest.mark.parametrize("merged", [False, True], ids=["levels and points apart", "merged"])
def test_rf_detr(monkeypatch: pytest.MonkeyPatch, merged: bool) -> None:
    """RF-DETR's layout, value (B, heads, C, S) and weights (B, Q, heads, levels * points), against
    grid_sample."""
    module = stand_in(
        monkeypatch, "rfdetr.models.ops.modules.ms_deform_attn", ms_deform_attn_core_pytorch=object()
    )
    adapters.rf_detr()
    value, locations, weights = problem()
    batch, _, heads, channels = value.shape
    samples, start = [], 0
    for level, (height, width) in enumerate(SHAPES):
        maps = value[:, start : start + height * width].permute(0, 2, 3, 1)
        grid = (2 * locations[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)
        sampled = F.grid_sample(maps.reshape(-1, channels, height, width), grid, align_corners=False)
        samples.append(sampled)
        start += height * width
    mixing = weights.transpose(1, 2).reshape(batch * heads, 1, 5, -1)
    expected = (torch.cat(samples, -1) * mixing).sum(-1).view(batch, heads * channels, 5).transpose(1, 2)
    output = module.ms_deform_attn_core_pytorch(
        value.permute(0, 2, 3, 1),
        torch.tensor(SHAPES),
        locations.flatten(3, 4) if merged else locations,
        weights.flatten(3),
        value_spatial_shapes_hw=SHAPES if merged else None,
    )
    assert close(output, expected)


def test_half_precision_with_float32_locations() -> None:
    """Under autocast a model gives the operator a value in bfloat16 and locations in float32."""
    value, locations, weights = problem()
    output = adapters.MSDeformAttnFunction.apply(
        value.bfloat16(), torch.tensor(SHAPES), torch.tensor([0, 24]), locations, weights.bfloat16()
    )
    assert output.dtype == torch.bfloat16
    expected = ms_deform_attn_reference(value, SHAPES, locations, weights)
    assert (output.float() - expected).abs().max() < 0.02 * expected.abs().max()  # 8 bits
