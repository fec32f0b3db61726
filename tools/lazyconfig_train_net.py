#!/usr/bin/env python
"""Train or evaluate a LazyConfig, with Detectron2's command line.

tools/lazyconfig_train_net.py --config-file CONFIG [--num-gpus N] [--resume] [--eval-only] [key=value ...]
"""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext

from piip.engine.command_line import UserError, argument_parser, tool

EPILOG = """
Examples:
    train on 8 GPUs       %(prog)s --config-file CONFIG.py --num-gpus 8
    the same by torchrun  torchrun --standalone --nproc-per-node 8 %(prog)s --config-file CONFIG.py
    go on after a stop    %(prog)s --config-file CONFIG.py --num-gpus 8 --resume
    evaluate              %(prog)s --config-file CONFIG.py --eval-only train.init_checkpoint=MODEL.pth
    on the CPU            %(prog)s --config-file CONFIG.py train.device=cpu
    custom dataset        %(prog)s --config-file CONFIG.py --data train=ANNOTATIONS.json:IMAGES \\
                              val=ANNOTATIONS.json:IMAGES train.init_checkpoint=MODEL.pth
"""


@tool
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argument_parser(epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="CONFIG", help="LazyConfig")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint")
    parser.add_argument("--eval-only", action="store_true", help="evaluate train.init_checkpoint")
    parser.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar="SPLIT=ANNOTATIONS.json:IMAGES",
        help="custom dataset in the place of the config's: for detectors in COCO's format, for train and val "
        "or, without SPLIT, for both; class layers follow their classes",
    )
    parser.add_argument("--num-gpus", type=int, default=1, metavar="N", help="processes on this machine")
    parser.add_argument("--num-machines", type=int, default=1, metavar="N", help="machines in all")
    parser.add_argument("--machine-rank", type=int, default=0, metavar="N", help="of this machine, from 0")
    # the user's own port: a process left over from another run is noticed
    port = 2**15 + 2**14 + os.getuid() % 2**14
    parser.add_argument("--dist-url", default=f"tcp://127.0.0.1:{port}", metavar="URL", help="of machine 0")
    parser.add_argument("opts", nargs="*", metavar="key=value", help="changes to the config")
    args = parser.parse_intermixed_args(argv)  # overrides may stand before options, too

    # imported here: --help needs none of it
    from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

    from piip.engine.data.custom_data import without_overrides
    from piip.engine.distributed.launching import start
    from piip.engine.distributed.preemption import EXIT_STATUS, passed_on
    from piip.engine.train import main as train

    args.data, overrides = without_overrides(args.data)
    args.opts = [*overrides, *args.opts]
    try:
        with passed_on() if args.num_gpus > 1 else nullcontext():
            start(train, args)
    except ProcessExitedException as error:
        if error.exit_code != EXIT_STATUS:  # killed, as by the kernel where memory runs out
            raise UserError(str(error)) from error
        sys.exit(EXIT_STATUS)
    except ProcessRaisedException as error:  # its text is the worker's traceback
        name, _, message = str(error).strip().splitlines()[-1].partition(": ")
        if args.traceback or not name.endswith(UserError.__qualname__):
            raise
        raise UserError(message) from error


if __name__ == "__main__":
    main()
