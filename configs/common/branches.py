"""The published branches as parts of a config: `piip.branches.published`, not yet built."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from detectron2.config import LazyCall as L

from piip.branches import Pretrained, published


def _lazy(make: Callable[..., published.PublishedBranch]) -> Callable[..., Any]:
    @wraps(make)
    def build(*args: Any, **options: Any) -> Any:
        branch = make(*args, **options)
        config = L(branch.family)(**branch.options)
        if branch.pretrained is not None:
            config.pretrained = L(Pretrained)(**vars(branch.pretrained))
        return config

    return build


vit, augreg, dinov2, mae = map(_lazy, (published.vit, published.augreg, published.dinov2, published.mae))
internvit_6b, beitv2 = map(_lazy, (published.internvit_6b, published.beitv2))
uni_perceiver, convnext = map(_lazy, (published.uni_perceiver, published.convnext))
deit_classifier = _lazy(published.deit_classifier)
augreg_classifier = _lazy(published.augreg_classifier)
dinov3, eva02 = map(_lazy, (published.dinov3, published.eva02))
