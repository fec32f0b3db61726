"""PIIP in Detectron2. The only part of the package that needs Detectron2."""

from .backbone import piip_backbone
from .resize import OneOf, RandomResizeToFit, ResizeToFit

__all__ = ["OneOf", "RandomResizeToFit", "ResizeToFit", "piip_backbone"]
