#!/usr/bin/env python
"""Offer a page on which trained models can be tried: what they find, what it takes, what branches respond to.

tools/web_demo.py --config-file CONFIG [CONFIG ...] --weights MODEL.pth [MODEL.pth ...] [--port 7860]
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from piip.engine.command_line import argument_parser, tool


@tool
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argument_parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", nargs="+", required=True, help="LazyConfigs, one a model")
    parser.add_argument("--weights", nargs="+", required=True, help="checkpoints, one a config, in its order")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets others in (default: %(default)s)")
    parser.add_argument("--port", type=int, default=7860, help="(default: %(default)s)")
    parser.add_argument("--examples", type=Path, help="folder of images to offer (default: drawn shapes)")
    parser.add_argument(
        "--max-megabytes", type=float, default=20.0, help="of an uploaded file (default: %(default)s)"
    )
    parser.add_argument(
        "--max-megapixels", type=float, default=40.0, help="of an uploaded image (default: %(default)s)"
    )
    parser.add_argument("--opts", nargs="+", default=[], help="config overrides, such as train.device=cpu")
    args = parser.parse_args(argv)
    if len(args.config_file) != len(args.weights):
        parser.error(
            f"{len(args.config_file)} configs and {len(args.weights)} checkpoints: give one for each config"
        )
    if args.examples and not args.examples.is_dir():
        parser.error(f"--examples {args.examples} is no folder")

    # imported here: --help needs none of it
    from piip.engine.prediction.sources import IMAGE_SUFFIXES
    from piip.serve.analysis import Model
    from piip.serve.page import build_page, drawn_examples, serve
    from piip.serve.upload import Limits

    limits = Limits(args.max_megabytes, args.max_megapixels)
    models = [
        Model(config, weights, args.opts)
        for config, weights in zip(args.config_file, args.weights, strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder:
        if args.examples:
            images = sorted(p for p in args.examples.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        else:
            images = drawn_examples(Path(folder))
        serve(build_page(models, limits, images), limits, host=args.host, port=args.port)


if __name__ == "__main__":
    main()
