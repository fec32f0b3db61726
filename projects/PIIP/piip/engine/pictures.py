"""Pictures of what the model finds, drawn on the way through an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils.events import get_event_storage, has_event_storage

from ..images import printable, read_image, write_image
from .renderer import Renderer, unused_name

__all__ = ["Pictures"]


class Pictures(DatasetEvaluator):
    """Draws the outputs for a few images, the same ones in every evaluation, and shows them to the writers.

    Args:
        renderer: draws them.
        folder: for the pictures, which are named as their images, numbered where a name comes twice; made if
            missing.
        total: number of images that will come.
        number: of images to draw, evenly spread.
        tag: what the writers show the pictures under.
    """

    def __init__(
        self, renderer: Renderer, folder: Path, total: int, number: int, *, tag: str = "predictions"
    ) -> None:
        self.renderer, self.folder, self.tag = renderer, folder, tag
        self.chosen = set(np.linspace(0, total - 1, min(number, total)).astype(int).tolist())
        self.reset()

    def reset(self) -> None:
        self.seen = 0
        self._names: set[str] = set()

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Any]) -> None:
        """Draw those of a batch that were chosen.

        Raises:
            OSError: a picture cannot be written.
        """
        for record, output in zip(inputs, outputs, strict=True):
            if self.seen in self.chosen:
                self._draw(record["file_name"], output)
            self.seen += 1

    def _draw(self, file: str, output: Any) -> None:
        output = {key: value.to("cpu") for key, value in output.items()}
        drawn = self.renderer.draw(read_image(file), output)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / unused_name(Path(file).stem, ".jpg", self._names)
        write_image(path, drawn)
        if has_event_storage():
            picture = np.ascontiguousarray(drawn[:, :, ::-1].transpose(2, 0, 1))
            get_event_storage().put_image(f"{self.tag}/{printable(path.stem)}", picture)

    def evaluate(self) -> dict[str, Any]:
        """Nothing: pictures are for people."""
        return {}
