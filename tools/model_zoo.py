#!/usr/bin/env python
"""List the released detectors, or check every row of the list against its config.

tools/model_zoo.py [--check]
"""

from collections.abc import Sequence
from pathlib import Path

from piip.engine.command_line import argument_parser, tool
from piip.weights.model_zoo import RELEASED, markdown_table

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "COCO"


@tool
def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, or the check's findings; status 1 where a row is wrong."""
    parser = argument_parser(description="Lists the released detectors as a Markdown table.")
    parser.add_argument("--check", action="store_true", help="build each config and compare it with its row")
    if not parser.parse_args(argv).check:
        print(markdown_table())
        return 0
    from piip.measure.zoo_check import check  # needs Detectron2, which the list does not

    wrong = 0
    for released in RELEASED:
        problems = check(released, CONFIGS)
        wrong += bool(problems)
        print(f"{'; '.join(problems) or 'ok'}: {released.config}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    main()
