"""Semantic segmentation on PIIP: heads and inference in windows, in plain PyTorch."""

from ..extras import explain_missing
from .heads import FCNHead, SegmentationHeads, UPerNetHead
from .inference import slide_inference

explain_missing(__name__)

__all__ = ["FCNHead", "SegmentationHeads", "UPerNetHead", "slide_inference"]
