#!/usr/bin/env python
"""Serve a web page to try trained models on: detections, time and cost, responses of the branches.

tools/web_demo.py --config-file CONFIG [CONFIG ...] --weights MODEL.pth [MODEL.pth ...] [--port 7860]
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from piip.engine.command_line import argument_parser, tool


@tool
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argument_parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", nargs="+", required=True, help="LazyConfigs, one per model")
    parser.add_argument(
        "--weights", nargs="+", required=True, help="checkpoints, one per config, in the same order"
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="name or address to listen at; 0.0.0.0 lets others in (default: %(default)s)",
    )
    parser.add_argument("--port", type=int, default=7860, help="(default: %(default)s)")
    parser.add_argument(
        "--examples",
        type=Path,
        help="folder of images to offer (default: drawn shapes, for models that know them)",
    )
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
    from detectron2.utils.logger import setup_logger

    from piip.images import list_files
    from piip.serve.analysis import Model
    from piip.serve.page import build_page, drawn_examples, serve
    from piip.serve.privacy import private_folder
    from piip.serve.upload import Limits

    setup_logger(name="detectron2.piip")
    limits = Limits(args.max_megabytes, args.max_megapixels)
    with private_folder() as folder:
        models = [
            Model(config, weights, args.opts)
            for config, weights in zip(args.config_file, args.weights, strict=True)
        ]
        images = list_files(args.examples) if args.examples else drawn_examples(models, folder)
        serve(build_page(models, limits, images), limits, args.host, args.port)


if __name__ == "__main__":
    main()
