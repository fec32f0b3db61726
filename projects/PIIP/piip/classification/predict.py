"""Prediction with a classifier on images of any size, and drawing of the classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont
from timm.data import ImageNetInfo
from torch import Tensor, nn

from ..images import Image
from ..numerics import autocast

__all__ = ["ClassPredictor", "ClassRenderer", "describe"]

_IMAGENET = 1000
_FONT_SHARE = 16  # lines that would fill the shorter side of a picture
_MIN_FONT = 10  # pixels


def describe(names: Sequence[str], number: int) -> list[str]:
    """Names of classes for people.

    Args:
        names: of the data set that a model was trained on; WordNet's (n01440764) become words. Empty where
            they are not known: those of ImageNet-1k then, if there are as many.
        number: of classes.
    """
    imagenet = ImageNetInfo()
    if not names:
        if number != _IMAGENET:
            return [f"class {index}" for index in range(number)]
        return [imagenet.index_to_description(index) for index in range(number)]
    known = set(imagenet.label_names()) if names[0].startswith("n") else set()
    return [imagenet.label_name_to_description(name) if name in known else name for name in names]


class ClassPredictor:
    """A trained classifier that takes images of any size.

    Args:
        model: from normalised images to logits, on its device.
        transform: from a Pillow image to a normalised tensor ``(3, H, W)``, such as
            `timm.data.create_transform` makes for evaluation.
        precision: "float32" or "bfloat16".
    """

    def __init__(
        self, model: nn.Module, transform: Callable[[Pillow.Image], Tensor], precision: str = "float32"
    ) -> None:
        self.model, self.transform, self.precision = model.eval(), transform, precision
        self.device = next(model.parameters()).device

    @torch.inference_mode()
    def batch(
        self, images: Sequence[Image], sizes: Sequence[tuple[int, int]] | None = None
    ) -> list[dict[str, Tensor]]:
        """Probabilities ``(classes,)`` of each image, as "probabilities", on the CPU; sizes say nothing."""
        rgb = [Pillow.fromarray(np.ascontiguousarray(image[:, :, ::-1])) for image in images]
        pixels = torch.stack([self.transform(image) for image in rgb])
        with autocast(self.device, self.precision):
            logits = self.model(pixels.to(self.device))
        return [{"probabilities": row} for row in logits.float().softmax(dim=1).cpu()]


class ClassRenderer:
    """Writes the likeliest classes into a picture; an `engine.renderer.Renderer`.

    Args:
        names: of the classes.
        top: how many of them to name.
    """

    def __init__(self, names: Sequence[str], top: int = 3) -> None:
        self.names, self.top = names, min(top, len(names))

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """An answer is for a whole image, of any size."""
        return height, width

    def _likeliest(self, output: Any) -> list[tuple[int, float]]:
        scores, labels = output["probabilities"].topk(self.top)
        return list(zip(labels.tolist(), scores.tolist(), strict=True))

    def records(self, output: Any, image_id: int) -> list[dict[str, Any]]:
        """An entry a class: "image_id", "category_id" from 0, "category" and "score", the likeliest first."""
        return [
            {"image_id": image_id, "category_id": label, "category": self.names[label], "score": score}
            for label, score in self._likeliest(output)
        ]

    def draw(self, image: Image, output: Any) -> Image:
        """The image with the classes and their probabilities in its upper left corner."""
        picture = Pillow.fromarray(np.ascontiguousarray(image[:, :, ::-1]))
        font = ImageFont.load_default(size=max(_MIN_FONT, min(picture.size) // _FONT_SHARE))
        text = "\n".join(f"{score:4.0%} {self.names[label]}" for label, score in self._likeliest(output))
        pen = ImageDraw.Draw(picture, "RGBA")
        pen.rectangle(pen.multiline_textbbox((2, 2), text, font=font), fill=(0, 0, 0, 150))
        pen.multiline_text((2, 2), text, font=font, fill=(255, 255, 255))
        return np.ascontiguousarray(np.asarray(picture)[:, :, ::-1])

    def save(self, output: Any, picture: Path, size: tuple[int, int]) -> None:
        """Nothing belongs beside the picture."""
