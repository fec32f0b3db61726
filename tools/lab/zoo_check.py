"""Checks rows of the model zoo against the configs they name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from detectron2.config import LazyConfig, instantiate

from piip.backbone import PIIP
from piip.classification.classifier import PIIPClassifier
from piip.flops import actual_cost, build_on_meta, published_cost
from piip.measure.cost import detector_cost, load_detector
from piip.weights.zoo import PublishedModel

__all__ = ["check", "check_classifier", "check_segmentor"]

Counted = Mapping[str, tuple[float, float, float]]
"""Of each figure what was counted, what the row lists and by how much they may differ."""


def check(released: PublishedModel, configs: Path) -> list[str]:
    """What is wrong with a detector's row, a line each.

    Args:
        released: the row.
        configs: the folder of its config.
    """
    file = configs / f"{released.config}.py"
    with build_on_meta():
        built = instantiate(LazyConfig.load(str(file)).model.backbone)
    backbone = getattr(built, "bottom_up", built)  # below an FPN, or without one
    counted = {
        "params_m": (sum(p.numel() for p in backbone.parameters()) / 1e6, released.params_m, 0.005),
        "gflops": (actual_cost(backbone.piip).total.gflops, released.gflops, 0.05),
    }
    if released.gflops_published is not None:  # published figures were rounded twice: 1740.49 is 1741
        counted["gflops_published"] = (
            published_cost(backbone.piip).total.gflops,
            released.gflops_published,
            0.6,
        )
    box, mask = (released.scores.get(f"{what} AP") for what in ("box", "mask"))
    says = f"Published box AP: {box}." if mask is None else f"Published AP: box {box}, mask {mask}."
    return _problems(backbone.piip, released.sizes, counted, file, says)


def check_segmentor(row: PublishedModel, configs: Path) -> list[str]:
    """What is wrong with a segmentor's row, likewise."""
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
    says = f"Published mIoU: {row.scores['mIoU']}." if row.scores else None
    return _problems(piip, row.sizes, counted, file, says)


def check_classifier(row: PublishedModel, configs: Path) -> list[str]:
    """What is wrong with a classifier's row, likewise."""
    file = configs / f"{row.config}.py"
    with build_on_meta():
        model = load_detector(str(file))
    if not isinstance(model, PIIPClassifier):
        return [f"the config builds a {type(model).__name__}, no classifier"]
    actual, published = (detector_cost(model, accounting=rules).total for rules in ("actual", "published"))
    counted = {
        "params_m": (actual.params_m, row.params_m, 0.005),
        "gflops": (actual.gflops, row.gflops, 0.05),
        "gflops_published": (published.gflops, row.gflops_published or 0, 0.05),
        # published without the head of the merged map, and rounded to a million with a head a branch
        "params_m_published": (
            actual.params_m - (0 if model.piip.merge is None else actual.parts["heads"].params_m),
            row.params_m_published,
            0.5 if model.piip.merge is None else 0.05,
        ),
    }
    return _problems(model.piip, row.sizes, counted, file, f"Published top-1: {row.scores['top-1']}.")


def _problems(piip: PIIP, listed_sizes: str, counted: Counted, file: Path, says: str | None) -> list[str]:
    """Where a row's sizes and figures differ from the model's, and what the config's text should say."""
    problems = []
    sizes = "/".join(str(size) for size in reversed(piip.image_sizes))
    if sizes != listed_sizes:
        problems.append(f"image_sizes: {listed_sizes}, built {sizes}")
    if says is not None and says not in file.read_text():
        problems.append(f"accuracy: the config does not say '{says}'")
    return problems + [
        f"{what}: {listed} listed, {value:.3f} counted"
        for what, (value, listed, tolerance) in counted.items()
        if abs(value - listed) > tolerance
    ]
