"""Semantic segmentation on PIIP: heads and inference in windows, in plain PyTorch."""

from .heads import FCNHead, SegmentationHeads, UPerNetHead
from .inference import slide_inference

__all__ = ["FCNHead", "SegmentationHeads", "UPerNetHead", "slide_inference"]
