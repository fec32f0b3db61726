#!/usr/bin/env python
"""Benchmarks: ``tools/benchmark.py ops`` times the attention operator against its reference."""

import argparse

from piip_ops import benchmark as ops_benchmark


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    ops = commands.add_parser("ops", help="the attention operator against its plain PyTorch reference")
    ops_benchmark.add_arguments(ops)
    ops.set_defaults(run=ops_benchmark.run)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
