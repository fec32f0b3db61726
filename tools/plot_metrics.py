#!/usr/bin/env python
"""Draw the metrics of trainings.

tools/plot_metrics.py outputs/demo [MORE_RUNS ...] [--output metrics.png]
"""

from collections.abc import Sequence
from pathlib import Path

from piip.engine.command_line import argument_parser, tool


@tool
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argument_parser(
        description="Draw losses, results, learning rates, gradients, gammas and speed of trainings."
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="output folder of a training, or its metrics.json"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/metrics.png"), help="picture (default: %(default)s)"
    )
    parser.add_argument(
        "--smooth",
        type=int,
        default=1,
        help="draw medians of so many records of a loss (default: %(default)s)",
    )
    args = parser.parse_args(argv)

    # imported here: --help needs none of it
    from lab.curves import draw, read_metrics

    histories = {str(run): read_metrics(run) for run in args.runs}
    panels = draw(histories, args.output, smooth=args.smooth)
    print(f"{', '.join(panels)} of {len(histories)} run{'s'[: len(histories) != 1]}: {args.output}")


if __name__ == "__main__":
    main()
