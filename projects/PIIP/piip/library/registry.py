"""The published models by name: what they are made of and where their weights are."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from typing import Any, Literal

from ..backbone import PIIP
from ..branches.published import vit
from ..weights import zoo
from .classifiers import from_scratch, pretrained_heads

__all__ = ["MODELS", "Entry", "find", "list_models"]

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # (x - 127.5) / 127.5 on 8-bit pixels


@dataclass(frozen=True)
class Entry:
    """A published model: its branches, smallest model first, and where its weights are."""

    letters: str
    sizes: tuple[int, ...]
    model: zoo.PublishedModel  # its row of the zoo
    window: int | None = None
    classifier: Literal["deit", "augreg", "scratch"] | None = None

    @property
    def url(self) -> str | None:
        """Where the released weights are; None where none were."""
        return self.model.url

    def build(self) -> PIIP:
        """The network, without pyramid or classifier, starting at random."""
        if self.classifier == "scratch":
            return from_scratch(self.sizes)
        if self.classifier is not None:
            return pretrained_heads(self.letters, self.sizes, self.classifier)
        branches = [vit(letter, self.window).build() for letter in reversed(self.letters)]
        return PIIP(branches, self.sizes[::-1])

    def pretrained_cfg(self, name: str) -> dict[str, Any]:
        """What timm calls so: where the weights are, and how images have to look."""
        side = max(self.sizes)
        mean, std = _IMAGENET if self.classifier else _HALF
        return {
            "architecture": name.partition(".")[0],
            "tag": name.partition(".")[2],
            "url": self.url,
            "num_classes": 1000 if self.classifier else 0,
            "input_size": (3, side, side),
            "interpolation": "bicubic" if self.classifier else "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "center" if self.classifier else "border",  # detectors see the whole image
            "mean": mean,
            "std": std,
        }


def _published() -> dict[str, Entry]:
    entries = {}
    for model in zoo.models_of("detection"):
        if model.branches:
            letters = "".join(model.branches)
            name = f"piip_{letters.lower()}_{model.sizes.replace('/', '_')}"
            entries[name] = Entry(letters, model.image_sizes, model, model.window)
    for model in zoo.models_of("classification"):
        letters, sizes = "".join(model.branches), model.sizes.replace("/", "_")
        if letters:
            family: Literal["deit", "augreg"] = "deit" if model.pretraining == "DeiT" else "augreg"
            name = f"piip_{letters.lower()}_{sizes}.in1k"
            entries[name] = Entry(letters, model.image_sizes, model, classifier=family)
        else:
            entries[f"piip_b_{sizes}"] = Entry("", model.image_sizes, model, classifier="scratch")
    return entries


MODELS = _published()


def list_models(pattern: str = "*", *, pretrained: bool = False) -> list[str]:
    """Names that :func:`create_model` takes, in alphabetical order.

    Args:
        pattern: shell pattern that they match.
        pretrained: leave out those for which no weights were released.
    """
    names = fnmatch.filter(MODELS, pattern)
    return sorted(name for name in names if MODELS[name].model.released or not pretrained)


def find(name: str) -> Entry:
    """The model of a name.

    Raises:
        ValueError: there is none; the error names those that come near.
    """
    if name not in MODELS:
        near = list_models(f"*{name.removeprefix('piip_').split('_')[0]}*") or list_models()
        raise ValueError(f"unknown model '{name}': expected one of {', '.join(near)}")
    return MODELS[name]
