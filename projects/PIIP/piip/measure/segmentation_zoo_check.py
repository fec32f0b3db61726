"""Checks the segmentors' rows of the model zoo against the configs they name."""

from __future__ import annotations

from pathlib import Path

from ..backbone import PIIP
from ..flops import build_on_meta
from ..weights.segmentation_zoo import PublishedSegmentor
from .cost import detector_cost, load_detector

__all__ = ["check_segmentor"]


def check_segmentor(row: PublishedSegmentor, configs: Path) -> list[str]:
    """What is wrong with a row, a line each.

    Args:
        row: the row.
        configs: the folder of its config.
    """
    file = configs / f"{row.config}.py"
    with build_on_meta():
        segmentor = load_detector(str(file))
    total = detector_cost(segmentor).total
    head = total.parts["neck"].gflops + total.parts["decode_head"].gflops
    heads_m = total.parts["decode_head"].params_m + total.parts["auxiliary_head"].params_m
    counted = {
        "params_m": (total.params_m - heads_m, row.params_m, 0.005),
        "gflops": (total.gflops - head, row.gflops, 0.06),
        "head_gflops": (head, row.head_gflops, 0.06),
    }
    (piip,) = (module for module in segmentor.modules() if isinstance(module, PIIP))
    sizes = "/".join(str(size) for size in reversed(piip.image_sizes))
    problems = [] if sizes == row.image_sizes else [f"image_sizes: {row.image_sizes}, built {sizes}"]
    if row.miou is not None and f"Published mIoU: {row.miou}." not in file.read_text():
        problems.append(f"mIoU: the config does not say 'Published mIoU: {row.miou}.'")
    return problems + [
        f"{what}: {listed} listed, {value:.3f} counted"
        for what, (value, listed, tolerance) in counted.items()
        if abs(value - listed) > tolerance
    ]
