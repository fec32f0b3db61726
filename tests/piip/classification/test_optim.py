"""Parameter groups that timm's optimizers make of a classifier."""

from __future__ import annotations

import pytest
from timm.optim import create_optimizer_v2

from piip.classification.optim import FasterBesidesBranches
from piip.engine.optim import layer_decay_factors

from .tiny import classifier


@pytest.mark.parametrize("separate", [True, False])
def test_published_groups(separate: bool) -> None:
    """Ten times the rate beside branches and their own heads; the decay is on every tensor."""
    model = classifier(separate=separate)
    optimizer = create_optimizer_v2(
        model, "adamw", lr=3e-5, weight_decay=0.1, param_group_fn=FasterBesidesBranches(lr=3e-5)
    )
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert all(group["weight_decay"] == 0.1 for group in optimizer.param_groups)
    own = ("piip.branches.", "head.norms.", "head.heads.")
    for name, parameter in model.named_parameters():
        assert rates[id(parameter)] == pytest.approx(3e-5 if name.startswith(own) else 3e-4), name


def test_layer_groups_of_timm() -> None:
    """Its `layer_decay` scales rates as the detectors' recipe does; positions and vectors are not decayed."""
    model = classifier()
    optimizer = create_optimizer_v2(model, "adamw", lr=1.0, weight_decay=0.1, layer_decay=0.5)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    factors = layer_decay_factors(model, 0.5)
    assert set(factors.values()) == {0.125, 0.25, 0.5, 1.0}  # before the blocks, two blocks, all else
    for name, parameter in model.named_parameters():
        group = groups[id(parameter)]
        assert group["lr_scale"] == factors[name], name
        assert group["weight_decay"] == (0.0 if parameter.ndim <= 1 or "pos_embed" in name else 0.1), name
