#!/usr/bin/env python
"""List the released detectors, or check every row of the list against its config.

tools/model_zoo.py [--check]
"""

import argparse
import sys
from pathlib import Path

from piip.weights.model_zoo import RELEASED, markdown_table

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "COCO"


def main(argv: list[str] | None = None) -> None:
    """Print the table, or the check's findings; status 1 where a row is wrong."""
    parser = argparse.ArgumentParser(description="Lists the released detectors as a Markdown table.")
    parser.add_argument("--check", action="store_true", help="build each config and compare it with its row")
    if not parser.parse_args(argv).check:
        print(markdown_table())
        return
    from piip.measure.zoo_check import check  # needs Detectron2, which the list does not

    wrong = 0
    for released in RELEASED:
        problems = check(released, CONFIGS)
        wrong += bool(problems)
        print(f"{'; '.join(problems) or 'ok'}: {released.config}", flush=True)
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
