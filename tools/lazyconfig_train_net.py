#!/usr/bin/env python
"""Train or evaluate a LazyConfig, with Detectron2's command line.

tools/lazyconfig_train_net.py --config-file CONFIG [--num-gpus N] [--resume] [--eval-only] [key=value ...]
"""

import sys

from detectron2.engine import default_argument_parser, launch

from piip.engine.train import main

EPILOG = """
Examples:
    train on 8 GPUs       %(prog)s --config-file CONFIG.py --num-gpus 8
    go on after a stop    %(prog)s --config-file CONFIG.py --num-gpus 8 --resume
    evaluate              %(prog)s --config-file CONFIG.py --eval-only train.init_checkpoint=MODEL.pth
    on the CPU            %(prog)s --config-file CONFIG.py train.device=cpu
"""

if __name__ == "__main__":
    parser = default_argument_parser(EPILOG)
    args = parser.parse_args()
    if not args.config_file:
        parser.error("--config-file is required")
    try:
        launch(
            main,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args,),
        )
    except KeyboardInterrupt:
        sys.exit(130)
