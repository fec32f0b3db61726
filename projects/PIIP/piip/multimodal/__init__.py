"""PIIP-LLaVA: PIIP as the vision encoder of a language model.

Tower and projector (:func:`piip.official.build_tower`) need only the core. The classes around a language
model need transformers; they are imported on first use and then registered with transformers' Auto classes.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..extras import explain_missing

if TYPE_CHECKING:
    from .auto import load
    from .configuration import PIIPLlavaConfig, PIIPVisionConfig
    from .modeling import PIIPLlavaForConditionalGeneration, PIIPLlavaModel, PIIPVisionModel
    from .processing import PIIPImageProcessor, PIIPLlavaProcessor

__all__ = [
    "PIIPImageProcessor",
    "PIIPLlavaConfig",
    "PIIPLlavaForConditionalGeneration",
    "PIIPLlavaModel",
    "PIIPLlavaProcessor",
    "PIIPVisionConfig",
    "PIIPVisionModel",
    "load",
]

explain_missing(__name__, "multimodal")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}: it has {', '.join(__all__)}")
    try:
        auto = import_module(".auto", __name__)
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise ImportError(
            f"piip.multimodal.{name} needs transformers: pip install 'piip[multimodal]'", name="transformers"
        ) from error
    return getattr(auto, name)
