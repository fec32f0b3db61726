"""Multi-scale deformable attention for PyTorch: compiled operators with plain PyTorch behind them."""

from .reference import deform_cross_attn_reference, ms_deform_attn_reference

ms_deform_attn = ms_deform_attn_reference
deform_cross_attn = deform_cross_attn_reference

__all__ = ["deform_cross_attn", "deform_cross_attn_reference", "ms_deform_attn", "ms_deform_attn_reference"]
