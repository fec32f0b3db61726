#!/usr/bin/env python
"""Write the data set of patterned shapes: tools/make_patterns.py [--output FOLDER]."""

from collections.abc import Sequence

from piip.engine.command_line import argument_parser, dataset_root, tool
from piip.quick.command_line import add_split_options, write_splits


@tool
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argument_parser(description="Write a small data set of drawn shapes, a folder a class.")
    add_split_options(
        parser,
        dataset_root() / "patterns",
        train_images=3600,
        val_images=540,
        image_size=96,
    )
    args = parser.parse_args(argv)

    # imported here: --help needs none of it
    from piip.quick.drawing import CLASSES
    from piip.quick.patterns import write_split

    write_splits(args, write_split, f"images of {len(CLASSES)} classes, {args.image_size} px")


if __name__ == "__main__":
    main()
