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
    """A file name, with a number behind the stem where that is used; it is added to the stems used.

    Files of one stem and other suffixes are told apart, too: what belongs to a picture is named by its stem.
    """
    unused, number = stem, 1
    while unused in used:
        number += 1
        unused = f"{stem}-{number}"
    used.add(unused)
    return f"{unused}{suffix}"
