"""Branch families: one a file."""

from .base import Branch
from .vit import ViTBranch

__all__ = ["Branch", "ViTBranch"]
