#!/usr/bin/env python
"""Write a data set of drawn images with questions, and the untrained PIIP-LLaVA that may learn to answer.

tools/make_questions.py [--root datasets/questions] [--train 4000] [--val 200]
"""

from collections.abc import Sequence
from pathlib import Path

from piip.engine.command_line import argument_parser, tool


@tool
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argument_parser(description="Draws images with questions, in LLaVA's format.")
    parser.add_argument("--root", type=Path, default=Path("datasets/questions"), help="folder to write")
    parser.add_argument("--train", type=int, default=4000, metavar="IMAGES")
    parser.add_argument("--val", type=int, default=200, metavar="IMAGES")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if min(args.train, args.val) < 1:
        raise ValueError(f"{min(args.train, args.val)} images cannot be drawn: give at least 1")

    # imported here: --help needs none of it
    from piip.multimodal.small import small_model, word_tokenizer
    from piip.quick.questions import IMAGE_SIZE, texts, write_questions

    for split in ("train", "val"):
        number = getattr(args, split)
        print(f"{number} images: {write_questions(args.root, split, number, args.seed)}")
    model, processor = small_model(IMAGE_SIZE, word_tokenizer(texts()), args.seed)
    model.save_pretrained(args.root / "model")
    processor.save_pretrained(args.root / "model")
    print(f"untrained model: {args.root / 'model'}")


if __name__ == "__main__":
    main()
