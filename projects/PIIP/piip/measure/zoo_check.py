"""Checks rows of the model zoo against the configs they name."""

from __future__ import annotations

from pathlib import Path

from detectron2.config import LazyConfig, instantiate

from ..flops import actual_cost, build_on_meta, published_cost
from ..weights.model_zoo import Released

__all__ = ["check"]


def check(released: Released, configs: Path) -> list[str]:
    """What is wrong with a row, a line each.

    Args:
        released: the row.
        configs: the folder of its config.
    """
    cfg = LazyConfig.load(str(configs / f"{released.config}.py"))
    with build_on_meta():
        built = instantiate(cfg.model.backbone)
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
    sizes = "/".join(str(size) for size in reversed(backbone.piip.image_sizes))
    problems = (
        [] if sizes == released.image_sizes else [f"image_sizes: {released.image_sizes}, built {sizes}"]
    )
    published = f"Published AP: box {released.box_ap}, mask {released.mask_ap}."
    if released.mask_ap is None:
        published = f"Published box AP: {released.box_ap}."
    if published not in (configs / f"{released.config}.py").read_text():
        problems.append(f"AP: the config does not say '{published}'")
    return problems + [
        f"{what}: {listed} listed, {value:.3f} counted"
        for what, (value, listed, tolerance) in counted.items()
        if abs(value - listed) > tolerance
    ]
