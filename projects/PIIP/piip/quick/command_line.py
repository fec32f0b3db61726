"""Options of the tools that draw a data set."""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["add_split_options"]


def add_split_options(
    parser: argparse.ArgumentParser, output: Path, *, train_images: int, val_images: int, image_size: int
) -> None:
    """Where to write two splits, how many images of what size, and the seed; the arguments are defaults."""
    shown = "(default: %(default)s)"
    parser.add_argument("--output", type=Path, default=output, help=f"folder to write it to {shown}")
    parser.add_argument("--train-images", type=int, default=train_images, help=shown)
    parser.add_argument("--val-images", type=int, default=val_images, help=shown)
    parser.add_argument(
        "--image-size", type=int, default=image_size, help=f"height and width in pixels {shown}"
    )
    parser.add_argument("--seed", type=int, default=0, help=shown)
