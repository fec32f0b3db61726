#!/usr/bin/env python
"""Train or evaluate a LazyConfig, with Detectron2's command line.

tools/lazyconfig_train_net.py --config-file CONFIG [--num-gpus N] [--resume] [--eval-only] [key=value ...]
"""

import sys
from collections.abc import Sequence
from contextlib import nullcontext

from piip.engine.command_line import argument_parser, tool

EPILOG = """
Examples:
    train on 8 GPUs       %(prog)s --config-file CONFIG.py --num-gpus 8
    the same by torchrun  torchrun --standalone --nproc-per-node 8 %(prog)s --config-file CONFIG.py
    go on after a stop    %(prog)s --config-file CONFIG.py --num-gpus 8 --resume
    evaluate              %(prog)s --config-file CONFIG.py --eval-only train.init_checkpoint=MODEL.pth
    on the CPU            %(prog)s --config-file CONFIG.py train.device=cpu
    on one's own data     %(prog)s --config-file CONFIG.py --data train=ANNOTATIONS.json:IMAGES \\
                              val=ANNOTATIONS.json:IMAGES train.init_checkpoint=MODEL.pth
"""


@tool
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    from detectron2.engine import default_argument_parser
    from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

    from piip.engine.data.custom_data import without_overrides
    from piip.engine.distributed.launching import start
    from piip.engine.distributed.preemption import EXIT_STATUS, passed_on
    from piip.engine.train import main as train

    parser = argument_parser(default_argument_parser(EPILOG))
    parser.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar="SPLIT=ANNOTATIONS.json:IMAGES",
        help="one's own data in the place of the config's: for detectors in COCO's format, for train and val "
        "or, without SPLIT, for both; class layers follow their classes",
    )
    args = parser.parse_args(argv)
    args.data, overrides = without_overrides(args.data)
    args.opts = [*overrides, *args.opts]
    if not args.config_file:
        parser.error("--config-file is required")
    try:
        with passed_on() if args.num_gpus > 1 else nullcontext():
            start(train, args)
    except ProcessExitedException as error:
        if error.exit_code != EXIT_STATUS:
            raise
        sys.exit(EXIT_STATUS)
    except ProcessRaisedException as error:  # its text is the worker's traceback
        if args.traceback:
            raise
        raise ValueError(str(error).strip().splitlines()[-1]) from error


if __name__ == "__main__":
    main()
