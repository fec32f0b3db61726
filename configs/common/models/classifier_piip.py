"""A PIIP classifier with a pretrained head a branch; whoever imports it fills in branches and image sizes."""

from typing import Any

from detectron2.config import LazyCall as L

from piip import PIIP, InteractionConfig
from piip.classification.classifier import PIIPClassifier

model = L(PIIPClassifier)(
    piip=L(PIIP)(
        branches=[], image_sizes=[], num_interactions=12, interaction=L(InteractionConfig)(), merge=None
    ),
    num_classes=1000,
)


def set_branches(family: Any, letters: str, *sizes: int) -> None:
    """Branches by the paper's letters and their image sizes, the largest model (smallest image) first."""
    model.piip.branches = [family(letter, size) for letter, size in zip(letters, sizes, strict=True)]
    model.piip.image_sizes = list(sizes)
