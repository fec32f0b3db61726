"""PIIP: parameter-inverted image pyramid networks (arXiv 2406.04330)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .backbone import PIIP, split_stages
from .inference import optimize_for_inference
from .interaction import InteractionConfig
from .merge import Merge

if TYPE_CHECKING:
    from .library.factory import create_model, list_models

__all__ = [
    "PIIP",
    "InteractionConfig",
    "Merge",
    "create_model",
    "list_models",
    "optimize_for_inference",
    "split_stages",
]


def __getattr__(name: str) -> Any:
    # The models by name stand on top of the tasks, which the core does not know.
    if name in ("create_model", "list_models"):
        from importlib import import_module

        return getattr(import_module(".library.factory", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
