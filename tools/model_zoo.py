#!/usr/bin/env python
"""List the published models, or check every row that has a config against it.

tools/model_zoo.py [--check]
"""

import itertools
from collections.abc import Sequence
from pathlib import Path

from piip.engine.command_line import argument_parser, tool

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


@tool
def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, or the check's findings; status 1 where a row is wrong."""
    parser = argument_parser(description="Lists the published models as Markdown tables.")
    parser.add_argument("--check", action="store_true", help="build each config and compare it with its row")
    args = parser.parse_args(argv)

    # imported here: --help needs none of it
    from lab.zoo_table import markdown_table
    from piip.weights.zoo import TASKS, models_of

    if not args.check:
        print("\n\n".join(map(markdown_table, TASKS)))
        return 0
    # these need Detectron2, which the list does not
    from lab.zoo_check import check, check_classifier, check_segmentor

    wrong = 0
    findings = itertools.chain(
        ((row.config, check(row, CONFIGS / "COCO")) for row in models_of("detection")),
        ((row.config, check_segmentor(row, CONFIGS / "ADE20K")) for row in models_of("segmentation")),
        ((row.config, check_classifier(row, CONFIGS / "ImageNet")) for row in models_of("classification")),
    )
    for config, problems in findings:
        wrong += bool(problems)
        print(f"{'; '.join(problems) or 'ok'}: {config}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    main()
