"""Configs of models newer than the paper: they build, and their costs are those that are written down."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import timm
from timm.data import resolve_data_config

from .. import require

require.detectron2()

from detectron2.config import LazyConfig, instantiate

from piip.flops import build_on_meta
from piip.measure.cost import detector_cost

REPOSITORY = Path(__file__).parents[2]
CONFIGS = sorted((REPOSITORY / "configs/COCO/next").glob("*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_builds_and_costs_what_is_documented(path: Path) -> None:
    cfg = LazyConfig.load(str(path))
    with build_on_meta():
        model = instantiate(cfg.model)
    cfg.optimizer.params.model = model
    instantiate(cfg.optimizer)
    assert list(model.backbone.output_shape()) == ["p2", "p3", "p4", "p5", "p6"]
    branches = model.backbone.bottom_up.piip.branches
    assert [branch.channels(0) for branch in branches] == [1024, 768, 384]
    assert [branch.stride(0) for branch in branches] == [16] * 3
    for branch in branches:
        statistics = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(branch.name).to_dict())
        for ours, theirs in ((model.pixel_mean, "mean"), (model.pixel_std, "std")):
            expected = [255 * value for value in statistics[theirs]]
            assert list(cfg.model["pixel_" + theirs]) == pytest.approx(expected, abs=1e-3), ours
    report = detector_cost(model.eval())
    rows = (REPOSITORY / "docs/library.md").read_text()
    row = re.search(rf"\| `{path.stem}` \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", rows)
    assert row is not None
    backbone = sum(
        part.gflops for name, part in report.total.parts.items() if re.match("branch|inter|merge", name)
    )
    counted = (backbone, report.total.gflops, report.total.params_m)
    assert [float(cell) for cell in row.groups()] == pytest.approx(counted, abs=0.06)
    assert not [note for note in report.not_counted if "no handler" in note and "aten::" in note]
