#!/usr/bin/env python
"""Draw the figures of the documentation from models themselves.

tools/draw_figures.py architecture --config-file CONFIG [--output FILE.png]
tools/draw_figures.py sampling --config-file CONFIG --weights MODEL.pth --image IMAGE [--output FILE.png]

Accuracy against cost and latency is drawn by tools/cost_tables.py.
"""

import argparse
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from piip.engine.command_line import argument_parser, tool

DPI = 90


@tool
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argument_parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    figures = parser.add_subparsers(dest="figure", required=True, metavar="FIGURE")
    architecture = figures.add_parser("architecture", help="branches, stages, interactions, costs")
    sampling = figures.add_parser("sampling", help="where the attention of some places of an image looks")
    for figure in (architecture, sampling):
        figure.add_argument("--config-file", required=True, help="LazyConfig of a detector with a PIIP")
        figure.add_argument("--output", type=Path, help="picture to write (default: FIGURE.png)")
        figure.add_argument("--opts", nargs="+", default=[], help="config overrides")
    sampling.add_argument("--weights", required=True, help="checkpoint of the model")
    sampling.add_argument("--image", type=Path, required=True, help="image to look at")
    sampling.add_argument("--stage", type=int, default=-1, help="whose interaction (default: the last)")
    sampling.add_argument(
        "--at",
        nargs="+",
        default=["0.3,0.3", "0.7,0.6"],
        metavar="X,Y",
        help="places, as shares of the image's width and height (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    figure = draw_architecture(args) if args.figure == "architecture" else draw_sampling(args)
    output = args.output or Path(f"{args.figure}.png")
    output.parent.mkdir(parents=True, exist_ok=True)
    save(figure, output)
    print(f"{output}: {output.stat().st_size / 1e3:.0f} kB")


def save(figure: Any, output: Path) -> None:
    """Write a figure in 128 colours, which keeps photographs in it small."""
    from PIL import Image

    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=DPI, facecolor="white", format="png")
    Image.open(drawn).convert("RGB").quantize(128).save(output, optimize=True)


def draw_architecture(args: argparse.Namespace) -> Any:
    """The figure of a config's detector."""
    from lab import architecture
    from piip.flops import build_on_meta
    from piip.measure.cost import load_detector

    with build_on_meta():
        detector = load_detector(args.config_file, overrides=args.opts)
    return architecture.draw_architecture(detector, Path(args.config_file).stem)


def draw_sampling(args: argparse.Namespace) -> Any:
    """The figure of a model's sampling points, one panel per direction."""
    from matplotlib.figure import Figure

    from lab.sampling import backbone_input, draw_sampling, sampling_points
    from piip.images import read_image
    from piip.serve.analysis import Model

    queries = [place(text) for text in args.at]
    model = Model(args.config_file, args.weights, args.opts)
    image = read_image(args.image)
    shown, padded = backbone_input(model, image)
    points = sampling_points(model.piip, padded, args.stage)
    figure = Figure(figsize=(2.9 * len(points), 3.2))
    for panel, one in enumerate(points, start=1):
        draw_sampling(figure.add_subplot(1, len(points), panel), shown, one, queries)
    figure.tight_layout()
    return figure


def place(text: str) -> tuple[float, float]:
    """A place from "X,Y".

    Raises:
        ValueError: it is none.
    """
    try:
        x, y = (float(number) for number in text.split(","))
    except ValueError as error:
        raise ValueError(f"'{text}' is no place: expected X,Y such as 0.3,0.7") from error
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise ValueError(f"place {text} lies outside the image: expected shares from 0 to 1")
    return x, y


if __name__ == "__main__":
    main()
