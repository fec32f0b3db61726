#!/usr/bin/env python
"""Write the data set of patterned shapes: tools/make_patterns.py [--output FOLDER]."""

from collections.abc import Sequence
from pathlib import Path

from piip.engine.command_line import argument_parser, tool


@tool
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    from piip.engine.data import dataset_root
    from piip.quick.drawing import CLASSES
    from piip.quick.patterns import write_split

    parser = argument_parser(description="Write a small data set of drawn shapes, a folder a class.")
    parser.add_argument(
        "--output",
        type=Path,
        default=dataset_root() / "patterns",
        help="folder to write it to (default: %(default)s)",
    )
    parser.add_argument("--train-images", type=int, default=3600, help="(default: %(default)s)")
    parser.add_argument("--val-images", type=int, default=540, help="(default: %(default)s)")
    parser.add_argument(
        "--image-size", type=int, default=96, help="height and width in pixels (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    args = parser.parse_args(argv)
    for split, number in (("train", args.train_images), ("val", args.val_images)):
        folder = write_split(args.output, split, number, args.image_size, args.seed)
        print(f"{number} images of {len(CLASSES)} classes, {args.image_size} px: {folder}")


if __name__ == "__main__":
    main()
