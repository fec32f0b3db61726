#!/usr/bin/env python
"""Convert a released detector, segmentor or classifier to our names, a PIIP-LLaVA to transformers, or back.

tools/convert_checkpoint.py IN OUT --config-file CONFIG [--to-official] [key=value ...]
tools/convert_checkpoint.py FOLDER OUT [--tower NAME] [--to-official]
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from piip.engine.command_line import argument_parser, tool

EPILOG = """
Training, evaluation and the demo take released files as they are; this writes the converted one down.

Examples:
    to Detectron2  %(prog)s mask_rcnn_deit_tsb_1120_896_448_fpn_1x_coco_bs16.pth tsb.safetensors \\
                       --config-file configs/COCO/mask_rcnn_piip_tsb_1120_896_448_1x.py
    and back       %(prog)s tsb.safetensors released.pth --to-official \\
                       --config-file configs/COCO/mask_rcnn_piip_tsb_1120_896_448_1x.py
    PIIP-LLaVA     %(prog)s piip-llava_clip-bl_512-256_7B piip-llava
"""


@tool
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argument_parser(epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "source", metavar="IN", help="checkpoint to convert, a path or a URL; of a PIIP-LLaVA its folder"
    )
    parser.add_argument("target", metavar="OUT", help=".safetensors or .pth file to write, or a folder")
    parser.add_argument("--config-file", metavar="CONFIG", help="LazyConfig of the model")
    parser.add_argument(
        "--tower", metavar="NAME", help="the released PIIP-LLaVA, where its config does not say"
    )
    parser.add_argument(
        "--to-official", action="store_true", help="from Detectron2's names to the released ones"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config")
    args = parser.parse_args(argv)

    # imported here: --help needs none of it
    if Path(args.source).is_dir():
        from piip.multimodal.convert import convert_folder

        options = {"tower": args.tower, "to_official": args.to_official}
        print("\n".join(convert_folder(args.source, args.target, **options)))
        return
    if args.config_file is None:
        raise ValueError(f"--config-file is missing: {args.source} is no folder of a PIIP-LLaVA")
    from piip.engine.checkpoints.convert import convert_checkpoint
    from piip.engine.config import load_config

    cfg = load_config(args.config_file, args.overrides)
    lines = convert_checkpoint(
        args.source, args.target, cfg, to_official=args.to_official, config_name=args.config_file
    )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
