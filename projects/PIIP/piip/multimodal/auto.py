"""Register the models with transformers' Auto classes, and load a whole model from a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
)

from .configuration import PIIPLlavaConfig, PIIPVisionConfig
from .modeling import PIIPLlavaForConditionalGeneration, PIIPLlavaModel, PIIPVisionModel
from .processing import PIIPImageProcessor, PIIPLlavaProcessor

__all__ = ["load"]

for _config in (PIIPVisionConfig, PIIPLlavaConfig):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoImageProcessor.register(_config, slow_image_processor_class=PIIPImageProcessor, exist_ok=True)
AutoModel.register(PIIPVisionConfig, PIIPVisionModel, exist_ok=True)
AutoModel.register(PIIPLlavaConfig, PIIPLlavaModel, exist_ok=True)
AutoModelForImageTextToText.register(PIIPLlavaConfig, PIIPLlavaForConditionalGeneration, exist_ok=True)
AutoProcessor.register(PIIPLlavaConfig, PIIPLlavaProcessor, exist_ok=True)


def load(folder: str | Path, **options: Any) -> tuple[PIIPLlavaForConditionalGeneration, PIIPLlavaProcessor]:
    """A model and its processor from a folder, or a name on the Hugging Face hub. Missing tensors are an
    error.

    Args:
        folder: what ``save_pretrained`` or ``tools/convert_checkpoint.py`` wrote.
        options: for ``from_pretrained``, such as ``dtype`` and ``device_map``.

    Raises:
        OSError: there is no such model.
        ValueError: it is another kind of model, or its weights are not those of its configuration, where
            transformers would start from random ones.
    """
    config = AutoConfig.from_pretrained(folder)
    if not isinstance(config, PIIPLlavaConfig):
        raise ValueError(
            f"{folder} holds a model of type '{config.model_type}', expected '{PIIPLlavaConfig.model_type}': "
            "released PIIP-LLaVA become one with tools/convert_checkpoint.py"
        )
    model, report = PIIPLlavaForConditionalGeneration.from_pretrained(
        folder, config=config, output_loading_info=True, ignore_mismatched_sizes=True, **options
    )
    problems = [
        *(f"{key} is missing" for key in sorted(report["missing_keys"])),
        *(f"{key} is unknown" for key in sorted(report["unexpected_keys"])),
        *(
            f"{key} has shape {tuple(found)}, expected {tuple(wanted)}"
            for key, found, wanted in sorted(report["mismatched_keys"])
        ),
    ]
    if problems:
        shown = "; ".join(problems[:3]) + ("; ..." if len(problems) > 3 else "")
        raise ValueError(
            f"the weights in {folder} are not those of the model that its config.json describes, "
            f"{len(problems)} tensors differ: {shown}. Give the folder of one model, whole"
        )
    # PIIPImageProcessor works on PIL images: to ask for it spares a warning that torchvision was wanted
    return model, AutoProcessor.from_pretrained(folder, backend="pil")
