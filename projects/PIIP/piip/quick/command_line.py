"""The command line of the tools that generate a data set of two splits."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

__all__ = ["add_split_options", "write_splits"]


def add_split_options(
    parser: argparse.ArgumentParser, output: Path, *, train_images: int, val_images: int, image_size: int
) -> None:
    """Options for the folder, the images per split, their size and the seed, with these defaults."""
    shown = "(default: %(default)s)"
    parser.add_argument("--output", type=Path, default=output, help=f"folder to write it to {shown}")
    parser.add_argument("--train-images", type=int, default=train_images, help=shown)
    parser.add_argument("--val-images", type=int, default=val_images, help=shown)
    parser.add_argument(
        "--image-size", type=int, default=image_size, help=f"height and width in pixels {shown}"
    )
    parser.add_argument("--seed", type=int, default=0, help=shown)


def write_splits(
    args: argparse.Namespace, write_split: Callable[[Path, str, int, int, int], Path], images: str
) -> None:
    """Write both splits as the options say, and print a line for each, in which `images` describes them."""
    for split, number in (("train", args.train_images), ("val", args.val_images)):
        print(f"{number} {images}: {write_split(args.output, split, number, args.image_size, args.seed)}")
