#!/usr/bin/env python
"""Train a stage of a PIIP-LLaVA.

tools/train_multimodal.py --config-file configs/multimodal/stage1.yaml [key=value ...]
"""

import argparse
from collections.abc import Sequence

from piip.engine.command_line import argument_parser, tool

EPILOG = """
A config holds the fields of piip.multimodal.train.StageSettings and of transformers' TrainingArguments; data
are in LLaVA's format. On several GPUs it is started by accelerate, which brings FSDP2 or DeepSpeed.

Examples:
    the projector   accelerate launch --config_file configs/multimodal/fsdp2.yaml %(prog)s \\
                        --config-file configs/multimodal/stage1.yaml data=558k.json images=pretrain
    everything      accelerate launch --config_file configs/multimodal/fsdp2.yaml %(prog)s \\
                        --config-file configs/multimodal/stage2.yaml data=mix665k.json images=finetune
"""


@tool
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argument_parser(epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", metavar="CONFIG", required=True, help="yaml of the stage")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config")
    args = parser.parse_args(argv)

    # imported here: --help needs none of it
    from piip.multimodal.train import read_config, train

    settings, arguments = read_config(args.config_file, args.overrides)
    metrics = train(settings, arguments)
    if arguments.should_save:
        print(f"trained for {metrics['train_runtime']:.0f} s, written to {arguments.output_dir}")


if __name__ == "__main__":
    main()
