#!/usr/bin/env python
"""Write a trained model to a file that runs without this package, and check that it says the same.

tools/export.py --config-file CONFIG --weights MODEL.pth --format onnx --output model.onnx
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from piip.engine.command_line import argument_parser, tool

EPILOG = """
formats:
    torch-export   a torch.export program (.pt2), for Python with torch, torchvision and piip_ops
    onnx           standard operators of opset 20, for ONNX Runtime and others
    aotinductor    compiled for this machine (.pt2), for Python or C++ with the same libraries

The status is 1 where the file and the model differ: boxes by more than 0.01 px, scores by more than 1e-4.
"""


@tool
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; status 1 where the exported model says something else."""
    parser = argument_parser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config-file", help="LazyConfig of the model (default: what its training kept in the weights)"
    )
    parser.add_argument("--weights", help="checkpoint (default: the config's train.init_checkpoint)")
    parser.add_argument("--format", required=True, choices=["torch-export", "onnx", "aotinductor"])
    parser.add_argument("--output", type=Path, required=True, help="file to write")
    parser.add_argument(
        "--images", nargs="+", default=[], help="files, folders, globs to check with (default: the test set)"
    )
    parser.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar="val=ANNOTATIONS.json:IMAGES",
        help="custom dataset whose test set to check with, as the training's --data; a classifier's FOLDER",
    )
    parser.add_argument(
        "--number", type=int, default=20, help="of images to check with (default: %(default)s)"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config")
    args = parser.parse_intermixed_args(argv)  # overrides may stand before options, too

    # imported here: --help needs none of it
    from piip.classification.experiment import is_classifier
    from piip.engine.config import load_config
    from piip.engine.data.custom_data import follow_weights, use_custom_dataset, without_overrides
    from piip.export.check import check
    from piip.export.formats import FORMATS, load, require, trace, write
    from piip.export.images import read_images, test_files
    from piip.export.model import load_exportable

    args.data, overrides = without_overrides(args.data)
    if args.output.suffix != FORMATS[args.format]:
        parser.error(f"a file of format {args.format} is named *{FORMATS[args.format]}, not {args.output}")
    require(args.format)
    cfg = load_config(args.config_file, [*overrides, *args.overrides], weights=args.weights or "")
    weights = args.weights or cfg.train.init_checkpoint
    if not weights:
        parser.error("no weights: give --weights, or set train.init_checkpoint in the config")
    if args.data and is_classifier(cfg):
        cfg.dataloader.test.dataset.root = str(Path(args.data[0], "val"))
    elif args.data:
        follow_weights(cfg, weights)
        use_custom_dataset(cfg, args.data, train=False)
    names = args.images or test_files(cfg)  # before the minutes that writing takes
    model = load_exportable(cfg, weights)
    images = read_images(cfg, names, args.number, input_format=model.input_format, largest=model.largest)
    write(model, trace(model), args.format, args.output)
    print(f"wrote {args.output}, {args.output.stat().st_size / 2**20:.1f} MB; comparing")
    report = check(model, load(model, args.format, args.output), images)
    print(report)
    if not report.agrees:
        print("the exported model does not say the same: do not use it")
    return 0 if report.agrees else 1


if __name__ == "__main__":
    main()
