"""Checks the classifiers' rows of the model zoo against the configs they name."""

from __future__ import annotations

from pathlib import Path

from ..classification.classifier import PIIPClassifier
from ..flops import build_on_meta
from ..weights.classification_zoo import PublishedClassifier
from .cost import detector_cost, load_detector

__all__ = ["check_classifier"]


def check_classifier(row: PublishedClassifier, configs: Path) -> list[str]:
    """What is wrong with a row, a line each.

    Args:
        row: the row.
        configs: the folder of its config.
    """
    file = configs / f"{row.config}.py"
    with build_on_meta():
        model = load_detector(str(file))
    if not isinstance(model, PIIPClassifier):
        return [f"the config builds a {type(model).__name__}, no classifier"]
    actual, published = (detector_cost(model, accounting=rules).total for rules in ("actual", "published"))
    counted = {
        "params_m": (actual.params_m, row.params_m, 0.005),
        "gflops": (actual.gflops, row.gflops, 0.05),
        "gflops_published": (published.gflops, row.gflops_published, 0.05),
        # published without the head of the merged map, and rounded to a million with a head a branch
        "params_m_published": (
            actual.params_m - (0 if model.piip.merge is None else actual.parts["heads"].params_m),
            row.params_m_published,
            0.5 if model.piip.merge is None else 0.05,
        ),
    }
    sizes = "/".join(str(size) for size in reversed(model.piip.image_sizes))
    problems = [] if sizes == row.image_sizes else [f"image_sizes: {row.image_sizes}, built {sizes}"]
    if f"Published top-1: {row.top1}." not in file.read_text():
        problems.append(f"top-1: the config does not say 'Published top-1: {row.top1}.'")
    return problems + [
        f"{what}: {listed} listed, {value:.3f} counted"
        for what, (value, listed, tolerance) in counted.items()
        if abs(value - listed) > tolerance
    ]
