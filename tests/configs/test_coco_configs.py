"""Every published experiment has a config, and it builds the published model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from .. import require
from ..shared_data import key_list, key_lists

require.detectron2()

from detectron2.config import LazyConfig, instantiate

FOLDER = Path(__file__).parents[2] / "configs" / "COCO"
CONFIGS = sorted(FOLDER.glob("*.py"))
LETTERS = {"t": 192, "s": 384, "b": 768, "l": 1024}
TABLES = {  # Table 1 and Appendix B of the paper, smallest model first
    "tsb": "896_672_448 1120_672_448 1344_672_448 1120_896_448 1344_896_448 1568_896_448 1568_896_672"
    " 1568_1120_672 1792_1120_672 1792_1344_672",
    "sbl": "672_448_224 896_448_224 1120_448_224 1120_672_224 1120_672_448 1344_672_448 1344_896_448"
    " 1568_896_672 1568_1120_672 1792_1120_672",
    "tsbl": "1344_896_672_448 1568_1120_672_448 1568_1120_896_448 1792_1344_896_448 1792_1568_1120_448",
}
EXPERIMENTS = [(models, sizes) for models, rows in TABLES.items() for sizes in rows.split()]


def load(name: str) -> Any:
    return LazyConfig.load(str(FOLDER / f"{name}.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_instantiates(path: Path) -> None:
    cfg = LazyConfig.load(str(path))
    with torch.device("meta"):
        model = instantiate(cfg.model)
    cfg.optimizer.params.model = model
    instantiate(cfg.optimizer)
    instantiate(cfg.lr_multiplier)
    assert cfg.train.max_iter > 0
    levels = ["f2", "f3", "f4"] if path.stem.startswith("dino") else ["p2", "p3", "p4", "p5", "p6"]
    assert list(model.backbone.output_shape()) == levels


@pytest.mark.parametrize(("models", "sizes"), EXPERIMENTS)
def test_published_experiment(models: str, sizes: str) -> None:
    """Branches, windows, drop path, sizes, pixel statistics and recipe."""
    cfg = load(f"mask_rcnn_piip_{models}_{sizes}_1x")
    piip = cfg.model.backbone.piip
    expected_sizes = [int(size) for size in sizes.split("_")]
    assert list(piip.image_sizes) == expected_sizes[::-1]
    assert [branch.embed_dim for branch in piip.branches] == [LETTERS[letter] for letter in reversed(models)]
    drop_path = {192: 0.05, 384: 0.05, 768: 0.15, 1024: 0.4}
    assert all(branch.drop_path_rate == drop_path[branch.embed_dim] for branch in piip.branches)
    window = 14 if models == "tsb" else 28
    small_window = 14 if expected_sizes[-1] == 224 else window
    assert [branch.window_sizes for branch in piip.branches] == [small_window] + [window] * (len(models) - 1)
    assert piip.num_interactions == 12 and cfg.model.backbone.size_divisibility == 224
    assert (
        list(cfg.model.pixel_mean) == list(cfg.model.pixel_std) == [127.5] * 3
        and cfg.model.input_format == "RGB"
    )
    largest = expected_sizes[0]
    for loader in (cfg.dataloader.train, cfg.dataloader.test):
        resize = loader.mapper.augmentations[0]
        assert (resize.long_edge, resize.short_edge) == (largest, largest * 800 // 1333)
        assert loader.mapper.image_format == "RGB"
    assert (cfg.optimizer.lr, cfg.optimizer.weight_decay) == (1e-4, 0.05)
    assert cfg.optimizer.params.layer_decay_rate == 0.85 and cfg.dataloader.train.total_batch_size == 16


def test_schedule() -> None:
    """12 epochs of COCO, warm-up over 500 iterations from 0.001, a tenth after epochs 8 and 11."""
    cfg = load("mask_rcnn_piip_tsb_1120_896_448_1x")
    multiplier, epoch, end = instantiate(cfg.lr_multiplier), 7330, 12 * 7330
    assert cfg.train.max_iter == end
    assert multiplier(0) == pytest.approx(0.001)
    assert multiplier(250 / end) == pytest.approx(0.5005)
    for iteration, value in (
        (500, 1),
        (8 * epoch - 1, 1),
        (8 * epoch, 0.1),
        (11 * epoch - 1, 0.1),
        (11 * epoch, 0.01),
    ):
        assert multiplier(iteration / end) == pytest.approx(value), iteration


def published_counts(pattern: str) -> dict[str, int]:

    (name,) = [name for name in key_lists("keys") if re.search(pattern, name)]
    return key_list("keys", name)["params_by_part"]


@pytest.mark.parametrize(
    ("config", "keys"),
    [
        *((f"mask_rcnn_piip_tsb_{s}_1x", "deit_tsb_1120") for s in TABLES["tsb"].split()),
        *((f"mask_rcnn_piip_sbl_{s}_1x", "mask_rcnn_deit_sbl_1120") for s in TABLES["sbl"].split()),
    ],
)
def test_parameter_counts(config: str, keys: str) -> None:
    with torch.device("meta"):
        backbone = instantiate(load(config).model.backbone)
    bottom_up = backbone.bottom_up
    parts = {f"branch{j}": branch for j, branch in enumerate(bottom_up.piip.branches, start=1)}
    parts |= {f"merge_branch{j}": bottom_up.piip.merge.transforms[str(j)] for j in (1, 2, 3)}
    parts |= {
        "interactions": bottom_up.piip.interactions,
        "fpn1": bottom_up.pyramid.f1,
        "fpn2": bottom_up.pyramid.f2,
    }
    counts = {part: sum(p.numel() for p in module.parameters()) for part, module in parts.items()}
    counts |= {f"w{j}": 1 for j in (1, 2, 3)}
    assert counts == published_counts(keys)


@pytest.mark.parametrize("sizes", TABLES["tsbl"].split())
def test_parameter_counts_of_four_branches(sizes: str) -> None:
    """As configured: branch 4 is a T. (The released weights have an S there, see `piip.official`.)"""
    published = published_counts("deit_tsbl_1344")
    with torch.device("meta"):
        piip = instantiate(load(f"mask_rcnn_piip_tsbl_{sizes}_1x").model.backbone).bottom_up.piip
    tiny = published_counts("deit_tsb_1120")["branch3"]
    counts = [sum(p.numel() for p in branch.parameters()) for branch in piip.branches]
    assert counts == [*(published[f"branch{j}"] for j in (1, 2, 3)), tiny]


@pytest.mark.parametrize(("letter", "total"), [("b", 92895744), ("l", 315934720)])
def test_baseline_parameter_counts(letter: str, total: int) -> None:
    with torch.device("meta"):
        backbone = instantiate(load(f"mask_rcnn_vitdet_{letter}_1024_1x").model.backbone)
    assert sum(p.numel() for p in backbone.bottom_up.parameters()) == total


def test_other_neck_is_one_line() -> None:
    cfg = LazyConfig.apply_overrides(
        load("mask_rcnn_piip_tsb_1120_896_448_1x"), ["model.backbone.neck=simple"]
    )
    with torch.device("meta"):
        backbone = instantiate(cfg.model.backbone)
    assert type(backbone).__name__ == "SimplePyramid"
    assert list(backbone.output_shape()) == ["p2", "p3", "p4", "p5", "p6"]
