"""Multi-scale deformable attention for PyTorch: compiled operators with plain PyTorch behind them."""

from .flops import flop_handles
from .ops import build_info, deform_cross_attn, ms_deform_attn
from .reference import deform_cross_attn_reference, ms_deform_attn_reference

__all__ = [
    "build_info",
    "deform_cross_attn",
    "deform_cross_attn_reference",
    "flop_handles",
    "ms_deform_attn",
    "ms_deform_attn_reference",
]
