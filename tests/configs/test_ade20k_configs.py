"""Every segmentor of the paper has a config; what was released has its names, what was published its cost."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from .. import require
from ..shared_data import golden, key_list

require.detectron2()

from detectron2.config import LazyConfig, instantiate

from lab.zoo_check import check_segmentor
from lab.zoo_table import markdown_table
from piip import PIIP
from piip.engine.checkpoints.convert import convert_checkpoint
from piip.flops import build_on_meta
from piip.measure.cost import detector_cost, load_detector
from piip.weights.converters.segmentor import convert_segmentor, to_official_segmentor
from piip.weights.zoo import PublishedModel, models_of

REPOSITORY = Path(__file__).parents[2]
SEGMENTORS = models_of("segmentation")
FOLDER = REPOSITORY / "configs/ADE20K"
IDS = [row.config for row in SEGMENTORS]


def test_rows_are_the_configs() -> None:
    assert {row.config for row in SEGMENTORS} == {path.stem for path in FOLDER.glob("*.py")}
    assert markdown_table("segmentation") in (REPOSITORY / "projects/PIIP/README.md").read_text()


@pytest.mark.parametrize("row", SEGMENTORS, ids=IDS)
def test_instantiates(row: PublishedModel) -> None:
    """Model, recipe, data loaders' mappers; one crop gives every branch whole patches."""
    cfg = LazyConfig.load(str(FOLDER / f"{row.config}.py"))
    with torch.device("meta"):
        model = instantiate(cfg.model)
    cfg.optimizer.params.model = model
    instantiate(cfg.optimizer)
    multiplier = instantiate(cfg.lr_multiplier)
    assert multiplier(0) == pytest.approx(1e-6) and multiplier(1) == pytest.approx(0)
    assert cfg.train.max_iter == int(row.config.rpartition("_")[2].removesuffix("k")) * 1000
    for loader in (cfg.dataloader.train, cfg.dataloader.test):
        instantiate(loader.mapper)
    assert model.crop_size % model.backbone.size_divisibility == 0
    assert model.heads.decode_head.conv_seg.out_channels == 150


@pytest.mark.parametrize("row", SEGMENTORS, ids=IDS)
def test_rows(row: PublishedModel) -> None:
    assert check_segmentor(row, FOLDER) == []


@pytest.mark.parametrize("row", [row for row in SEGMENTORS if row.released], ids=lambda row: row.config)
def test_published_cost(row: PublishedModel) -> None:
    """6364, 1663, 2354, 4374 and 7308 G: rounded, or cut off."""
    with build_on_meta():
        model = load_detector(str(FOLDER / f"{row.config}.py"))
    assert row.gflops_published is not None
    assert abs(detector_cost(model, accounting="published").total.gflops - row.gflops_published) < 1


def test_the_smallest_model_sees_the_crop_enlarged() -> None:
    piip = instantiate(
        LazyConfig.load(str(FOLDER / "upernet_piip_tsb_896_448_336_160k.py")).model.backbone.piip
    )
    assert isinstance(piip, PIIP)
    assert [image.shape[2] for image in piip.image_pyramid(torch.zeros(1, 3, 512, 512))] == [336, 448, 896]
    assert piip.size_divisibility == 512
    with torch.no_grad():
        assert piip.eval()(torch.zeros(1, 3, 512, 512)).shape == (1, 768, 56, 56)


def test_published_names() -> None:
    """Those of the backbone without projections and norms, and of the heads, all of them."""
    name = "2branch__mask_rcnn_internvit_h6b_1024_512_fpn_1x_coco_bs16_ms_speedup"
    content = key_list("keys", name)
    backbone = {f"backbone.{key}" for key in content["keys"]}
    heads = set(golden("fixtures/segmentation", "upernet_tiny").group("state"))
    with torch.device("meta"):
        model = instantiate(LazyConfig.load(str(FOLDER / "upernet_piip_h6b_512_192_80k.py")).model)
    official = to_official_segmentor(model.state_dict())
    assert set(official) == backbone | heads
    assert official["backbone.branch1.pos_embed"].shape[1] == 12**2 + 1
    assert official["backbone.branch2.pos_embed"].shape[1] == 32**2 + 1


def test_conversion_and_back(tmp_path: Path) -> None:
    """Through files, bit for bit; what is no segmentor is refused by name."""
    config = REPOSITORY / "configs/quick/upernet_piip_128_96_64_shapes.py"
    cfg = LazyConfig.load(str(config))
    from piip.engine.backbone import released_maps
    from piip.segmentation.segmentor import Segmentor

    from ..piip.models import tiny_piip

    piip = tiny_piip()
    cfg.model.backbone, cfg.model.in_features = released_maps(piip), ["f1", "f2", "f3", "f4"]
    cfg.model.heads.decode_head.in_dims = [piip.out_channels] * 4
    cfg.model.heads.auxiliary_head.in_dim, cfg.model.heads.auxiliary_index = piip.out_channels, 2
    model = instantiate(cfg.model)
    assert isinstance(model, Segmentor)
    state = model.state_dict()
    official = to_official_segmentor(state)
    torch.save({"state_dict": official}, tmp_path / "released.pth")
    lines = convert_checkpoint(str(tmp_path / "released.pth"), str(tmp_path / "ours.pth"), cfg)
    assert "fits the config" in lines[0]
    converted = torch.load(tmp_path / "ours.pth", weights_only=True)["model"]
    assert set(converted) == set(state) and all(torch.equal(converted[key], state[key]) for key in state)
    convert_checkpoint(str(tmp_path / "ours.pth"), str(tmp_path / "back.pth"), cfg, to_official=True)
    back = torch.load(tmp_path / "back.pth", weights_only=True)["state_dict"]
    assert set(back) == set(official) and all(torch.equal(back[key], official[key]) for key in official)
    with pytest.raises(ValueError, match=r"x is no released segmentor, 1 keys are unknown: roi_head.x"):
        convert_segmentor({"roi_head.x": torch.zeros(1)}, "x")
    with pytest.raises(ValueError, match="is not a released segmentor: convert it with --to-official"):
        convert_checkpoint(str(tmp_path / "ours.pth"), str(tmp_path / "x.pth"), cfg)
