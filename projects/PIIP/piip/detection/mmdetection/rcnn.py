"""The whole detector, which tells its parts how images are padded."""

from __future__ import annotations

from typing import Any

from detectron2.modeling import GeneralizedRCNN

__all__ = ["ReleasedRCNN"]


class ReleasedRCNN(GeneralizedRCNN):
    """Detectron2's `GeneralizedRCNN` around a `ReleasedRPN`, which it tells how images are padded."""

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self.proposal_generator.size_divisibility = self.backbone.size_divisibility
