#!/usr/bin/env python
"""Convert a released PIIP detector or segmentor to a Detectron2 checkpoint, or back.

tools/convert_checkpoint.py IN OUT --config-file CONFIG [--to-official] [key=value ...]
"""

import argparse
from collections.abc import Sequence

from piip.engine.command_line import argument_parser, tool

EPILOG = """
Training, evaluation and the demo take released files as they are; this writes the converted one down.

Examples:
    to Detectron2  %(prog)s mask_rcnn_deit_tsb_1120_896_448_fpn_1x_coco_bs16.pth tsb.safetensors \\
                       --config-file configs/COCO/mask_rcnn_piip_tsb_1120_896_448_1x.py
    and back       %(prog)s tsb.safetensors released.pth --to-official \\
                       --config-file configs/COCO/mask_rcnn_piip_tsb_1120_896_448_1x.py
"""


@tool
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argument_parser(epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="IN", help="checkpoint to convert, a path or a URL")
    parser.add_argument("target", metavar="OUT", help=".safetensors or .pth file to write")
    parser.add_argument("--config-file", metavar="CONFIG", required=True, help="LazyConfig of the model")
    parser.add_argument(
        "--to-official", action="store_true", help="from Detectron2's names to the released ones"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config")
    args = parser.parse_args(argv)

    # imported here: --help needs none of it
    from piip.engine.config import load_config
    from piip.engine.convert import convert_checkpoint

    cfg = load_config(args.config_file, args.overrides)
    lines = convert_checkpoint(
        args.source, args.target, cfg, to_official=args.to_official, config_name=args.config_file
    )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
