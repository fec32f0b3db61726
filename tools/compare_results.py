#!/usr/bin/env python
"""Draw predictions beside the ground truth.

tools/compare_results.py --config-file CONFIG --results coco_instances_results.json --output FOLDER
"""

from collections.abc import Sequence
from pathlib import Path

from piip.engine.command_line import argument_parser, tool


@tool
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argument_parser(description="Draw predictions beside the ground truth.")
    parser.add_argument(
        "--config-file", required=True, help="LazyConfig whose test set the predictions are of"
    )
    parser.add_argument("--results", type=Path, required=True, help="COCO results file an evaluation wrote")
    parser.add_argument("--output", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--number", type=int, default=16, help="how many images (default: %(default)s)")
    parser.add_argument("--score-threshold", type=float, default=0.5, help="(default: %(default)s)")
    args = parser.parse_args(argv)

    # imported here: --help needs none of it
    from lab.compare import compare
    from piip.engine.config import load_config

    dataset = load_config(args.config_file).dataloader.test.dataset.names
    pictures = compare(
        dataset, args.results, args.output, number=args.number, score_threshold=args.score_threshold
    )
    print(f"{len(pictures)} pictures of ground truth and predictions: {args.output}")


if __name__ == "__main__":
    main()
