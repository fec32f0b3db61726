"""The released DINO detectors: their tensors, their recipe, and what the published counter says of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from .. import require
from ..shared_data import key_list, key_lists

require.detectron2()

from detectron2.config import LazyConfig, instantiate

from piip.flops import build_on_meta
from piip.measure.cost import detector_cost, load_detector
from piip.weights.converters.dino import to_official_dino_detector

FOLDER = Path(__file__).parents[2] / "configs/COCO"
CASES = {  # config: what the released counter gives, epochs, steps, long and short edge in test
    "dino_piip_sbl_1792_1120_672_3x": (2388.7, 36, (27, 33), (2332, 1400)),
    "dino_piip_h6b_1024_768_1x": (20184.9, 12, (8, 11), (1333, 800)),
    "dino_piip_lh6b_1536_1024_512_2x": (17564.7, 24, (16, 22), (1999, 1200)),
}


@pytest.mark.parametrize("config", CASES)
def test_released_tensors(config: str) -> None:
    """Names and shapes of the whole backbone; neck and head have the 309 tensors that DINO has."""
    sizes = config.removeprefix("dino_piip_").rpartition("_")[0]
    (name,) = [name for name in key_lists("keys") if "dino" in name and f"{sizes}_fpn" in name]
    released = key_list("keys", name)["keys"]
    with torch.device("meta"):
        model = instantiate(LazyConfig.load(str(FOLDER / f"{config}.py")).model)
    official = to_official_dino_detector(model.state_dict())
    ours = {key: list(tensor.shape) for key, tensor in official.items()}
    prefix = "backbone."
    assert {k.removeprefix(prefix): s for k, s in ours.items() if k.startswith(prefix)} == released
    assert sum(key.startswith(("neck.", "bbox_head.")) for key in ours) == len(ours) - len(released) == 309


@pytest.mark.parametrize("config", CASES)
def test_cost(config: str) -> None:
    with build_on_meta():
        model = load_detector(str(FOLDER / f"{config}.py"))
    published = detector_cost(model, accounting="published").total.gflops
    assert published == pytest.approx(CASES[config][0], abs=0.1)
    parts = detector_cost(model).total.parts
    assert {"branch1", "branch2", "interactions", "merge", "neck", "encoder", "decoder", "heads"} <= set(
        parts
    )
    assert parts["encoder"].gflops > parts["decoder"].gflops > parts["heads"].gflops > 0


@pytest.mark.parametrize("config", CASES)
def test_recipe(config: str) -> None:
    """AdamW 2e-4, 32 images, 500 iterations of warm-up, DETR's augmentation scaled to the largest image."""
    _, epochs, steps, (long_edge, short_edge) = CASES[config]
    cfg = LazyConfig.load(str(FOLDER / f"{config}.py"))
    epoch, end = 3665, epochs * 3665
    assert cfg.train.max_iter == end and cfg.train.eval_period == epoch
    multiplier = instantiate(cfg.lr_multiplier)
    for iteration, value in ((0, 0.001), (500, 1), (steps[0] * epoch - 1, 1), (steps[0] * epoch, 0.1)):
        assert multiplier(iteration / end) == pytest.approx(value), iteration
    assert multiplier(steps[1] * epoch / end) == pytest.approx(0.01)
    assert (cfg.optimizer.lr, cfg.optimizer.weight_decay, cfg.optimizer.params.layer_decay_rate) == (
        2e-4,
        0.05,
        0.85,
    )
    assert cfg.dataloader.train.total_batch_size == 32
    resize = cfg.dataloader.test.mapper.augmentations[0]
    assert (resize.long_edge, resize.short_edge) == (long_edge, short_edge)
    policies = cfg.dataloader.train.mapper.augmentations[1].policies
    assert policies[0][0].long_edge == long_edge and policies[0][0].short_edges[-1] == short_edge
