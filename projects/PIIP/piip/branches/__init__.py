"""Branch families, one per file."""

from .base import Branch, Pretrained
from .beit import BEiTBranch
from .clip import CLIPBranch
from .convnext import ConvNeXtBranch
from .timm_vit import TimmBranch
from .uni_perceiver import UniPerceiverBranch
from .vit import ViTBranch

__all__ = [
    "BEiTBranch",
    "Branch",
    "CLIPBranch",
    "ConvNeXtBranch",
    "Pretrained",
    "TimmBranch",
    "UniPerceiverBranch",
    "ViTBranch",
]
