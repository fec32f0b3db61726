"""An image analysed by the quick models, untrained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ... import require

require.detectron2()

import pycocotools.mask as coco_mask
import torch

from piip.flops import build_on_meta
from piip.measure.cost import detector_cost, load_detector
from piip.serve.analysis import Model

from ..tiny_config import QUICK_CONFIG, QUICK_SEGMENTOR
from .serving import untrained


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return untrained(QUICK_CONFIG, tmp_path_factory.mktemp("detector"))


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)


def test_a_detector(detector: Model, image: np.ndarray) -> None:
    assert detector.task == "instance segmentation"
    assert detector.name.startswith("detector") and detector.name.endswith("/model")  # of its weights
    analysis = detector.analyse(image)
    assert analysis.picture.shape == (360, 480, 3)  # four times as large: small images are enlarged
    picture, rows = analysis.draw(0.05)
    assert picture.shape == analysis.picture.shape and rows
    scores = [float(score) for _, score, _ in rows]
    assert scores == sorted(scores, reverse=True)
    best = rows[0][0]
    _, of_one_class = analysis.draw(0.05, [best])
    assert of_one_class == [row for row in rows if row[0] == best]
    nothing, none = analysis.draw(1.0)
    assert none == [] and np.array_equal(nothing, analysis.picture)


def test_it_finds_what_the_demo_finds(detector: Model, image: np.ndarray) -> None:
    size = 360, 480  # at which it is shown
    instances = detector.analyse(image).found
    expected = detector.predictor(image, size)["instances"]
    assert torch.equal(instances.scores, expected.scores)
    masks = coco_mask.decode(list(instances.pred_masks)).transpose(2, 0, 1)
    assert np.array_equal(masks, expected.pred_masks.numpy())


def test_time_and_cost_by_component(detector: Model, image: np.ndarray) -> None:
    """Every part is counted once: the sums are the detector's, for the padded image."""
    rows = {row.component: row for row in detector.analyse(image).rows}
    with build_on_meta():
        report = detector_cost(load_detector(str(QUICK_CONFIG)), (96, 128))
    assert rows["all"].gflops == pytest.approx(report.total.gflops)
    assert rows["all"].params_m == pytest.approx(report.total.params_m)
    for number, side in ((1, "64x48"), (2, "96x72"), (3, "128x96")):
        row = rows[f"branch {number}"]
        assert row.gflops == pytest.approx(report.total.parts[f"branch{number}"].gflops)
        assert row.input_size == side
    assert all(row.milliseconds > 0 for row in rows.values())
    parts = [row for name, row in rows.items() if name != "all"]
    assert sum(row.milliseconds for row in parts) == pytest.approx(rows["all"].milliseconds)


def test_a_segmentor_in_windows(tmp_path: Path) -> None:
    """Each window is counted; the responses are of the whole image."""
    model = untrained(QUICK_SEGMENTOR, tmp_path)
    wide = np.random.default_rng(0).integers(0, 255, (128, 200, 3), dtype=np.uint8)
    analysis = model.analyse(wide)
    assert model.task == "semantic segmentation"
    assert {row.component: row.input_size for row in analysis.rows}["branch 1"] == "2 times 64x64"
    merged = analysis.responses[-1].picture
    assert merged.shape == (32, 50, 3)  # stride 4
    picture, rows = analysis.draw(0.5)
    assert picture.shape == (384, 600, 3)
    assert sum(float(share) for _, share in rows) == pytest.approx(100, abs=0.5)  # rounded to 0.1
    name = rows[0][0]
    assert [row[0] for row in analysis.draw(0.5, [name])[1]] == [name]


def test_no_weights_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"no weights for .*: give them, or set train.init_checkpoint"):
        Model(str(QUICK_CONFIG))
