"""The model zoo: rows that hold, weights that are fetched, a table that is the project page's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ... import require

require.detectron2()

from lab.zoo_check import check
from lab.zoo_table import markdown_table
from piip.weights import zoo
from piip.weights.zoo import PublishedModel, config_for, fetch, find, models_of

REPOSITORY = Path(__file__).parents[3]
CONFIGS = REPOSITORY / "configs" / "COCO"
RELEASED = models_of("detection")
TSB = "mask_rcnn_deit_tsb_1120_896_448_fpn_1x_coco_bs16"
TSBL = "mask_rcnn_deit_tsbl_1344_896_672_448_fpn_1x_coco_bs16"


def test_page_shows_the_table() -> None:
    assert markdown_table("detection") in (REPOSITORY / "projects/PIIP/README.md").read_text()


@pytest.mark.parametrize("released", RELEASED, ids=lambda released: released.name)
def test_configs_are_there(released: PublishedModel) -> None:
    assert (CONFIGS / f"{released.config}.py").is_file()
    assert released.second_s is None or (CONFIGS / f"{released.second_s}.py").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("released", RELEASED, ids=lambda released: released.name)
def test_rows(released: PublishedModel) -> None:
    assert check(released, CONFIGS) == []


@pytest.mark.slow
def test_wrong_rows_are_found() -> None:
    wrong = replace(
        find(TSB),
        params_m=175.0,
        gflops=300,
        gflops_published=240,
        image_sizes=(1120,),
        scores={"box AP": 50.0},
    )
    assert [problem.split(":")[0] for problem in check(wrong, CONFIGS)] == [
        "image_sizes",
        "accuracy",
        "params_m",
        "gflops",
        "gflops_published",
    ]


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match=f"no published model is called 'x': expected one of {TSB}"):
        find("x")


@pytest.mark.parametrize(("width", "letters"), [(384, "ssbl"), (192, "tsbl")])
def test_fourth_branch_decides_the_config(width: int, letters: str, tmp_path: Path) -> None:
    state = {"module.backbone.branch4.patch_embed.proj.weight": torch.zeros(width, 3, 16, 16)}
    torch.save({"state_dict": state}, tmp_path / "x.pth")
    assert config_for(find(TSBL), tmp_path / "x.pth") == f"mask_rcnn_piip_{letters}_1344_896_672_448_1x"
    assert config_for(find(TSB), tmp_path / "not read.pth") == find(TSB).config


def test_fetch_asks_for_the_size_of_the_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    """350 MB at the least for 175 M parameters."""
    asked: list[tuple[str, int]] = []

    def local_path(source: str, *, min_size: int) -> Path:
        asked.append((source, min_size))
        return Path("x.pth")

    monkeypatch.setattr(zoo, "local_path", local_path)
    assert fetch(find(TSB)) == Path("x.pth")
    assert asked == [(find(TSB).url, 350_080_000)]
