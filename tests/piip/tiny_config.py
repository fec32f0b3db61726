"""The quick configuration on a handful of images: a whole experiment in seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import DictConfig

from piip.engine.config import load_config
from piip.quick.shapes import write_split

REPOSITORY = Path(__file__).resolve().parents[2]
QUICK_CONFIG = REPOSITORY / "configs/quick/mask_rcnn_piip_128_96_64_shapes.py"
QUICK_SEGMENTOR = REPOSITORY / "configs/quick/upernet_piip_128_96_64_shapes.py"


def tiny_config(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str, config: Path = QUICK_CONFIG
) -> DictConfig:
    """A quick configuration with 12 images of 64 px to train on and 4 to test on, written to `folder`."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(folder / "datasets"))
    for split, number in (("train", 12), ("val", 4)):
        write_split(folder / "datasets/shapes", split, number, image_size=64, seed=0)
    settings = [
        f"train.output_dir={folder / 'output'}",
        "train.max_iter=4",
        "train.checkpointer.period=2",
        "train.log_period=1",
        "dataloader.train.total_batch_size=2",
    ]
    return load_config(str(config), [*settings, *overrides])
