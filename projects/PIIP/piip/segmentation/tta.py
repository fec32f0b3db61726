"""Test-time augmentation of segmentors: probabilities averaged over sizes and mirrored images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .heads import resize
from .segmentor import Segmentor

__all__ = ["SegmentorWithTTA"]


class SegmentorWithTTA(nn.Module):
    """A segmentor that looks at every image several times.

    Args:
        model: the segmentor, in evaluation.
        scales: sizes to look at, as factors of the size that the test set is resized to.
        flip: look at the mirror image, too.

    Raises:
        ValueError: there is no scale, or one that is not positive.
    """

    def __init__(self, model: Segmentor, *, scales: Sequence[float], flip: bool) -> None:
        super().__init__()
        if not scales or min(scales) <= 0:
            raise ValueError(f"scales {list(scales)} must be positive factors of the image's size")
        self.model, self.scales, self.flip = model, list(scales), flip
        self.input_format = model.input_format

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Tensor]]:
        """As :class:`Segmentor` in evaluation; "sem_seg" are probabilities."""
        return [{"sem_seg": self._probabilities(inputs)} for inputs in batched_inputs]

    def _probabilities(self, inputs: Mapping[str, Any]) -> Tensor:
        image = inputs["image"]
        size = {"height": inputs.get("height", image.shape[1]), "width": inputs.get("width", image.shape[2])}
        total: Tensor | None = None
        for scale in self.scales:
            scaled = resize(image[None].float(), [max(round(side * scale), 1) for side in image.shape[1:]])[0]
            for mirrored in (False, True) if self.flip else (False,):
                view = scaled.flip(2) if mirrored else scaled
                (output,) = self.model([{"image": view, **size}])
                logits = output["sem_seg"].flip(2) if mirrored else output["sem_seg"]
                probabilities = torch.softmax(logits, dim=0)
                total = probabilities if total is None else total + probabilities
        assert total is not None  # there is at least one scale
        return total / (len(self.scales) * (1 + self.flip))
