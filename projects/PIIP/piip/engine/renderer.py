"""What a task makes of a model's output for one image, and the names of the pictures it draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from ..images import Image

__all__ = ["Renderer", "unused_name"]


class Renderer(Protocol):
    """Draws and writes down a model's output for one image."""

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width at which the model should answer for an image of this size."""

    def records(self, output: Any, image_id: int) -> list[dict[str, Any]]:
        """Entries of `predictions.json`."""

    def draw(self, image: Image, output: Any) -> Image:
        """The image with the output drawn on it, of the same size."""

    def save(self, output: Any, picture: Path, size: tuple[int, int]) -> None:
        """Write what belongs beside the picture drawn, if anything, for an image of that height and width."""


def unused_name(stem: str, suffix: str, used: set[str]) -> str:
    """`stem` + `suffix`, with a number between them where that name is used; it is added to those used."""
    name, number = f"{stem}{suffix}", 1
    while name in used:
        number += 1
        name = f"{stem}-{number}{suffix}"
    used.add(name)
    return name
