"""PIIP in Detectron2. The only part of the package that needs Detectron2."""

from .backbone import piip_backbone

__all__ = ["piip_backbone"]
