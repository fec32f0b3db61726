#!/usr/bin/env python
"""Train or evaluate an image classifier with timm's data, augmentation, optimizer and schedule.

tools/train_classifier.py --config-file CONFIG [--data FOLDER] [--resume] [--eval-only [--ema]] [key=value]
"""

import argparse
from collections.abc import Sequence

from piip.engine.command_line import argument_parser, tool

EPILOG = """
Examples:
    train             %(prog)s --config-file CONFIG.py
    on 8 GPUs         torchrun --nproc-per-node 8 tools/train_classifier.py --config-file CONFIG.py
    go on             %(prog)s --config-file CONFIG.py --resume
    evaluate          %(prog)s --config-file CONFIG.py --eval-only train.init_checkpoint=MODEL.pth
    custom dataset    %(prog)s --config-file CONFIG.py --data FOLDER train.init_checkpoint=MODEL.pth
    on tar shards     %(prog)s --config-file CONFIG.py dataloader.train.dataset.name=wds/imagenet \\
                          dataloader.train.dataset.root=SHARDS dataloader.train.num_workers=8
    on the CPU        %(prog)s --config-file CONFIG.py train.device=cpu
"""


@tool
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argument_parser(epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", metavar="CONFIG", required=True, help="LazyConfig of a classifier")
    parser.add_argument(
        "--data",
        metavar="FOLDER",
        help="custom dataset in the place of the config's, FOLDER/train/CLASS/* and FOLDER/val/CLASS/*; the "
        "heads follow the classes",
    )
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--eval-only", action="store_true", help="evaluate train.init_checkpoint")
    parser.add_argument("--ema", action="store_true", help="evaluate the moving average that it keeps")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config")
    args = parser.parse_intermixed_args(argv)  # overrides may stand before options, too
    if args.ema and not args.eval_only:
        parser.error("--ema is for --eval-only: training keeps an average where the config has train.ema")

    # imported here: --help needs none of it
    from piip.classification.experiment import Run
    from piip.engine.config import load_config

    weights = "" if args.eval_only else None  # the config's train.init_checkpoint
    run = Run(load_config(args.config_file, args.overrides, weights=weights), args.data)
    if args.eval_only:
        run.evaluate(averaged=args.ema)
    else:
        run.train(resume=args.resume)


if __name__ == "__main__":
    main()
