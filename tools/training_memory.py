#!/usr/bin/env python
"""Memory that each card needs to train a detector sharded over several, computed from shapes.

tools/training_memory.py CONFIG [CONFIG ...] [--cards 8 16 32] [--images 1]
"""

from collections.abc import Sequence
from pathlib import Path

from piip.engine.command_line import argument_parser, tool


@tool
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argument_parser(description=__doc__)
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="LazyConfigs of detectors with a PIIP")
    parser.add_argument("--cards", nargs="+", type=int, default=[8, 16, 32], help="(default: %(default)s)")
    parser.add_argument("--images", type=int, default=1, help="images on each card (default: %(default)s)")
    parser.add_argument("--format", default="table", choices=["table", "markdown", "csv"])
    args = parser.parse_args(argv)
    if min(args.images, *args.cards) < 1:
        parser.error("--cards and --images are positive numbers")

    from lab.training_memory import config_rows
    from piip.flops import format_rows

    rows = [
        {"model": Path(config).stem, **row}
        for config in args.configs
        for row in config_rows(config, args.cards, args.images)
    ]
    print("GB (1e9 bytes) a card; bfloat16 training under FSDP2, activation checkpointing as configured\n")
    print(format_rows(rows, args.format))


if __name__ == "__main__":
    main()
