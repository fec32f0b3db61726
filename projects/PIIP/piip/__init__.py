"""PIIP: parameter-inverted image pyramid networks (arXiv 2406.04330)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backbone import PIIP, split_stages
    from .inference import optimize_for_inference
    from .interaction import InteractionConfig
    from .library.factory import create_model, list_models
    from .merge import Merge

__all__ = [
    "PIIP",
    "InteractionConfig",
    "Merge",
    "create_model",
    "list_models",
    "optimize_for_inference",
    "split_stages",
]

_MODULES = {
    "PIIP": "backbone",
    "InteractionConfig": "interaction",
    "Merge": "merge",
    "create_model": "library.factory",
    "list_models": "library.factory",
    "optimize_for_inference": "inference",
    "split_stages": "backbone",
}


def __getattr__(name: str) -> Any:
    # Imported when asked for: PyTorch takes seconds, and command lines explain themselves without it.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
