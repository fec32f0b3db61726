#!/usr/bin/env python
"""Count what a detector costs, part by part, or reproduce the published cost tables.

tools/flop_count.py --config-file CONFIG [--accounting published] [--resolutions 1568/1120/672] [key=value]
tools/flop_count.py --reproduce main
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from piip.engine.command_line import argument_parser, tool

EPILOG = """
One multiply-add is one FLOP. Nothing is computed: no weights, data or GPU are needed.

Examples:
    what a detector costs    %(prog)s --config-file configs/COCO/mask_rcnn_piip_tsb_1120_896_448_1x.py
    as the paper counts      %(prog)s --config-file CONFIG --accounting published
    what if                  %(prog)s --config-file CONFIG --branches sbl --resolutions 1120/672/448 \\
                                 model.backbone.piip.num_interactions=6
    a published table        %(prog)s --reproduce main --format markdown
    vision towers            %(prog)s --reproduce llava
"""
COLUMNS = (
    "model",
    "resolution",
    "gflops_published",
    "gflops",
    "difference_percent",
    "params_m_published",
    "params_m",
    "gflops_actual",
    "params_m_actual",
    "status",
)
NOTE = """\
gflops, params_m: accounting 'published'. gflops_actual, params_m_actual: accounting 'actual'; operations to
the merged map (of a single transformer: its deconvolution stack), parameters with that stack. One image."""
LLAVA = "llava"
LLAVA_NOTE = """\
Vision towers. gflops and its parts: accounting 'published', which takes the stride of ConvNeXt's first stage
for all interactions and leaves out some norms; gflops_actual and its parts: what runs. One image."""


@tool
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argument_parser(epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config-file", metavar="CONFIG", help="LazyConfig of a detector")
    what.add_argument(
        "--reproduce", metavar="TABLE", help="a published table, such as main; an unknown name lists them"
    )
    parser.add_argument("--accounting", default="actual", help="actual (default) or published")
    parser.add_argument("--input-size", nargs=2, type=int, metavar=("HEIGHT", "WIDTH"), help="in pixels")
    parser.add_argument(
        "--resolutions", help="image size of each branch, smallest model first: 1568/1120/672"
    )
    parser.add_argument("--branches", help="other models, by the paper's letters, smallest first: tsb")
    parser.add_argument("--format", choices=["table", "markdown", "csv", "json"], default="table")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config")
    args = parser.parse_args(argv)
    print(table(args) if args.reproduce else report(args))


def report(args: argparse.Namespace) -> str:
    """The cost of a config's detector as text."""
    # imported here: --help needs none of it, and the published tables no Detectron2
    from piip.flops import build_on_meta, format_report
    from piip.measure.cost import detector_cost, load_detector

    with build_on_meta():
        detector = load_detector(
            args.config_file,
            branches=args.branches,
            resolutions=args.resolutions,
            overrides=args.overrides,
        )
    size = tuple(args.input_size) if args.input_size else None
    return format_report(detector_cost(detector, size, accounting=args.accounting), args.format)


def table(args: argparse.Namespace) -> str:
    """A published table, reproduced, as text."""
    from lab.llava_table import reproduce_llava
    from lab.tables import TABLES, reproduce
    from piip.flops import format_rows

    rows = []
    of_towers = args.reproduce == LLAVA
    if not of_towers and args.reproduce not in TABLES:
        raise ValueError(f"unknown table '{args.reproduce}': expected one of {', '.join((*TABLES, LLAVA))}")
    for row in reproduce_llava() if of_towers else reproduce(args.reproduce):
        print(f"counted {row['model']} {row['resolution']}", file=sys.stderr)
        rows.append(row)
    if args.format == "json":
        return json.dumps({"table": args.reproduce, "rows": rows}, indent=2)
    columns = list(rows[0]) if of_towers else COLUMNS
    text = format_rows([{key: row[key] for key in columns} for row in rows], args.format)
    note = LLAVA_NOTE if of_towers else NOTE
    return text if args.format == "csv" else "\n".join([text, "", note, *readings(rows)])


def readings(rows: list[dict[str, Any]]) -> list[str]:
    """A line for each way to read a row that the paper does not define."""
    verdicts = {True: "reproduces the figure", False: "does not reproduce it", None: "nothing published"}
    return [
        f"{row.get('direction_type') or row['out_branches']}: '{reading['reading']}' gives "
        f"{reading['gflops']:.2f} GFLOPs, {verdicts[reading.get('reproduces')]}"
        for row in rows
        for reading in row.get("readings", [])
    ]


if __name__ == "__main__":
    main()
