#!/usr/bin/env python
"""Ask a PIIP-LLaVA about an image, or all questions of a data set.

tools/ask.py --model DIR --image IMAGE "how many discs?"
tools/ask.py --model DIR --data val.json --images DIR
"""

import argparse
from collections.abc import Sequence

from piip.engine.command_line import argument_parser, tool

EPILOG = """
The model is a folder that training or tools/convert_checkpoint.py wrote, or its name on the Hugging Face hub.

Examples:
    a question   %(prog)s --model piip-llava --image street.jpg "What is written on the sign?"
    all of them  %(prog)s --model outputs/demo-multimodal --template short \\
                     --data datasets/questions/val.json --images datasets/questions
"""


@tool
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argument_parser(epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", nargs="*", help="one or more, each answered by itself")
    parser.add_argument("--model", required=True, metavar="DIR", help="a PIIP-LLaVA")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--image", metavar="FILE", help="what the questions are about")
    what.add_argument("--data", metavar="JSON", help="questions and known answers, in LLaVA's format")
    parser.add_argument("--images", metavar="DIR", default=".", help="folder of the images of --data")
    parser.add_argument("--template", default="vicuna_v1", help="vicuna_v1 (released models), short or plain")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, or auto for all GPUs")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--max-new-tokens", type=int, default=128, metavar="N", help="length of an answer")
    args = parser.parse_args(argv)
    if args.image and not args.question:
        raise ValueError('there is no question: ask one, such as "What is in the image?"')

    # imported here: --help needs none of it
    import torch

    from piip.multimodal import load
    from piip.multimodal.answer import ask, score
    from piip.multimodal.data import read_conversations

    entries = read_conversations(args.data) if args.data else []
    place = args.device if args.device == "auto" else {"": args.device}
    model, processor = load(args.model, dtype=getattr(torch, args.dtype), device_map=place)
    options = {"template": args.template, "max_new_tokens": args.max_new_tokens}
    if args.image:
        asked = [(args.image, question) for question in args.question]
        for question, answer in zip(args.question, ask(model, processor, asked, **options), strict=True):
            print(f"{question} {answer}" if len(args.question) > 1 else answer)
        return
    for question, (right, number) in score(model, processor, entries, args.images, **options).items():
        print(f"{100 * right / number:5.1f}%  {right} of {number}  {question}")


if __name__ == "__main__":
    main()
