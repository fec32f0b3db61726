"""Image classifiers on PIIP, in plain PyTorch and timm."""

from ..extras import explain_missing

explain_missing(__name__, "classification")
