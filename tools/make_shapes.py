#!/usr/bin/env python
"""Write the shapes dataset: tools/make_shapes.py [--output FOLDER]."""

from collections.abc import Sequence

from piip.engine.command_line import argument_parser, dataset_root, tool
from piip.quick.command_line import add_split_options, write_splits


@tool
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argument_parser(description="Write a small COCO-format dataset of drawn shapes.")
    add_split_options(
        parser,
        dataset_root() / "shapes",
        train_images=2400,
        val_images=100,
        image_size=128,
    )
    args = parser.parse_args(argv)

    # imported here: --help needs none of it
    from piip.quick.shapes import write_split

    write_splits(args, write_split, f"images of {args.image_size} px")


if __name__ == "__main__":
    main()
