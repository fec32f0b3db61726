"""PIIP: parameter-inverted image pyramid networks (arXiv 2406.04330)."""

from .backbone import PIIP, split_stages
from .interaction import InteractionConfig
from .merge import Merge

__all__ = ["PIIP", "InteractionConfig", "Merge", "split_stages"]
