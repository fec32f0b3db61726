#!/usr/bin/env python
"""Turn the checkpoint of a training, sharded or not, into one file of weights, which every tool reads.

tools/gather_checkpoint.py OUTPUT/model_final model.safetensors
tools/gather_checkpoint.py OUTPUT/model_final.pth average.safetensors --ema
"""

from collections.abc import Sequence
from pathlib import Path

from piip.engine.command_line import argument_parser, tool


@tool
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argument_parser(description=__doc__)
    parser.add_argument("checkpoint", help="folder of a sharded training, or .pth file of another")
    parser.add_argument("target", help=".safetensors file to write, whole or not at all")
    parser.add_argument("--ema", action="store_true", help="the average of the weights (train.ema_decay)")
    args = parser.parse_args(argv)
    if not args.target.endswith(".safetensors"):
        raise ValueError(f"{args.target} must end in .safetensors")

    from piip.engine.checkpoints.checkpoint import header
    from piip.engine.checkpoints.sharded_checkpoint import about, whole_state
    from piip.weights.differences import check_values
    from piip.weights.files.tensors import write_file

    state = whole_state(args.checkpoint, "ema" if args.ema else "model")
    check_values(state, args.checkpoint, state)
    write_file(state, Path(args.target), header(about(args.checkpoint)))
    numbers = sum(tensor.numel() for tensor in state.values())
    print(f"{args.target}: {len(state)} tensors, {numbers / 1e6:.2f} M numbers")


if __name__ == "__main__":
    main()
