"""Configs of other pretraining, of the largest models and of ConvNeXt build exactly the published models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from .. import require
from ..shared_data import key_list

require.detectron2()

from detectron2.config import LazyConfig, instantiate
from detectron2.data import transforms as T

from piip import PIIP
from piip.engine.optim import layer_decay_factors
from piip.official import build_backbone
from piip.weights.pretrained import FAMILIES

FOLDER = Path(__file__).parents[2] / "configs" / "COCO"
SBL = "3branch__mask_rcnn_{}_sbl_1568_1120_672_fpn_1x_coco_bs16"
H6B = "2branch__mask_rcnn_internvit_h6b_1024_512_fpn_1x_coco_bs16_ms"
LH6B = "3branch__mask_rcnn_internvit_lh6b_1536_1024_512_fpn_1x_coco_bs32_ms"
TSBL = "4branch__mask_rcnn_deit_tsbl_{}_fpn_1x_coco_bs16"
CONVNEXT = "convnext__mask_rcnn_{}_1024_672_448_regular-fpn"
VARIANTS = {
    **{f"piip_sbl_1568_1120_672_{name}": SBL.format(name) for name in ("augreg", "mae", "dinov2")},
    "piip_sbl_1568_1120_672_augreg_speedup": SBL.format("augreg") + "_speedup",
    "piip_sbl_1568_1120_672_beitv2": SBL.format("beit"),
    "piip_sbl_1568_1120_672_uni_perceiver": SBL.format("uniperceiver"),
    "piip_h6b_1024_512": H6B,
    "piip_h6b_1024_512_speedup": f"{H6B}_speedup",
    "piip_lh6b_1536_1024_512": LH6B,
    "internvit_6b_1024": "baseline__mask_rcnn_internvit_6b_fpn_1x_coco_bs16_ms",
    **{
        f"piip_ssbl_{sizes}": TSBL.format(sizes)
        for sizes in ("1344_896_672_448", "1568_1120_672_448", "1792_1568_1120_448")
    },
    "piip_ct_cs_cb_1024_672_448": CONVNEXT.format("convnext-tsb"),
    "piip_ct_vs_vb_1024_672_448": CONVNEXT.format("convnext-t_vit-s_vit-b"),
    "piip_ct_cs_vb_1024_672_448": CONVNEXT.format("convnext-t_convnext-s_vit-b"),
    "piip_ct_vs_cb_1024_672_448": CONVNEXT.format("convnext-t_vit-s_convnext-b"),
    "piip_vt_cs_vb_1024_672_448": CONVNEXT.format("vit-t_convnext-s_vit-b"),
    "piip_vt_cs_cb_1024_672_448": CONVNEXT.format("vit-t_convnext-s_convnext-b"),
    "piip_vt_vs_cb_1024_672_448": CONVNEXT.format("vit-t_vit-s_convnext-b"),
    "convnext_b_1024": "baseline__mask_rcnn_convnext-base_1024_regular-fpn",
}


def load(name: str) -> Any:
    return LazyConfig.load(str(FOLDER / f"mask_rcnn_{name}_1x.py"))


def facts(piip: PIIP) -> dict[str, Any]:
    """All that one PIIP may have and another not; modules print their sizes, drop path rates and eps."""
    blocks = [block for branch in piip.branches for block in branch.blocks]
    attentions = [block.attn for block in blocks if hasattr(block, "attn")]
    return {
        "modules": repr(piip),
        "image sizes": piip.image_sizes,
        "stages": piip.stages,
        "windows": [(attention.window_size, attention.pad_before_qkv) for attention in attentions],
        "class tokens": [getattr(branch, "num_prefix_tokens", None) for branch in piip.branches],
    }


@pytest.mark.parametrize(("name", "keys"), VARIANTS.items(), ids=VARIANTS)
def test_is_the_published_model(name: str, keys: str) -> None:
    published = key_list("keys", keys)
    with torch.device("meta"):
        bottom_up = instantiate(load(name).model.backbone).bottom_up
        expected = build_backbone(published["backbone_config"], replicate_branch4_bug=True)
    assert facts(bottom_up.piip) == facts(expected.piip)
    shapes = {key: value.shape for key, value in bottom_up.state_dict().items()}
    assert shapes == {key: value.shape for key, value in expected.state_dict().items()}
    assert sum(p.numel() for p in bottom_up.parameters()) == published["total_params"]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_branch_names_its_weights(name: str) -> None:
    for branch in load(name).model.backbone.piip.branches:
        assert branch.pretrained.family in FAMILIES
        assert branch.pretrained.source.startswith(("timm:", "https://"))


@pytest.mark.parametrize(
    ("name", "size", "lr", "batch", "iterations"),
    [
        ("piip_h6b_1024_512", 1024, 1e-4, 16, 87960),
        ("piip_lh6b_1536_1024_512", 1536, 2e-4, 32, 43980),
        ("internvit_6b_1024", 1024, 1e-4, 16, 87960),
    ],
)
def test_multiscale_recipe(name: str, size: int, lr: float, batch: int, iterations: int) -> None:
    """DETR's two policies, a crop of the branch's size, padding to 64."""
    cfg = load(name)
    assert (cfg.optimizer.lr, cfg.dataloader.train.total_batch_size, cfg.train.max_iter) == (
        lr,
        batch,
        iterations,
    )
    assert cfg.model.backbone.size_divisibility == 64
    assert instantiate(cfg.lr_multiplier)(500 / iterations) == pytest.approx(1)
    scale = size / 1024
    test = cfg.dataloader.test.mapper.augmentations[0]
    assert (test.long_edge, test.short_edge) == (int(1333 * scale), int(800 * scale))
    _, policies, crop = instantiate(cfg.dataloader.train.mapper.augmentations)
    np.random.seed(0)
    shapes = []
    for _ in range(60):
        data = T.AugInput(np.zeros((480, 640, 3), np.uint8))
        T.AugmentationList([policies])(data)
        shapes.append(data.image.shape)
        T.AugmentationList([crop])(data)
        assert max(data.image.shape) <= size
    shorts = {min(shape[:2]) for shape in shapes}
    assert shorts <= {int(short * scale) for short in range(480, 801, 32)} | {
        min(shape[:2]) for shape in shapes if max(shape[:2]) == int(1333 * scale)
    }
    ratios = [max(shape[:2]) / min(shape[:2]) for shape in shapes]
    whole = sum(abs(ratio - 4 / 3) < 0.01 for ratio in ratios)
    assert 15 <= whole <= 50  # half of them keep the picture's proportions, the others are crops first


def test_convnext_takes_no_part_in_layer_decay() -> None:
    """A ViT's layers count from its own depth; ConvNeXt, merges and interactions learn at full rate."""
    with torch.device("meta"):
        model = instantiate(load("piip_ct_vs_cb_1024_672_448").model.backbone).bottom_up
    factors = layer_decay_factors(model, 0.8)
    assert factors["piip.branches.1.pos_embed"] == pytest.approx(0.8**13)
    assert factors["piip.branches.1.blocks.11.mlp.fc1.weight"] == pytest.approx(0.8)
    assert {value for name, value in factors.items() if ".branches.1." not in name} == {1.0}
