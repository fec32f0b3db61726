"""How every tool ends: a mistake of its user in one line on stderr and status 2."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ..extras import explain

__all__ = ["TRACEBACK", "argument_parser", "tool", "user_error"]

TRACEBACK = "--traceback"
FAILURE = 2  # the exit status of a mistake in what a tool was given, as argparse has it

# What is raised for bad input, bad files and a training that diverged. Others are mistakes in the program.
_EXPECTED = (OSError, ValueError, LookupError, FloatingPointError, ImportError)


def argument_parser(
    parser: argparse.ArgumentParser | None = None, **settings: Any
) -> argparse.ArgumentParser:
    """A parser with what all tools take; `settings` are argparse's."""
    parser = parser or argparse.ArgumentParser(**settings)
    parser.add_argument(TRACEBACK, action="store_true", help="show where in the program an error was raised")
    return parser


def user_error(error: BaseException) -> str:
    """An error as one line."""
    if isinstance(error, ModuleNotFoundError):
        error = explain(error) or error
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return f"error: {' '.join(text.split()) or type(error).__name__}"


class Tool(Protocol):
    """A command line: its arguments, or None for those the program was started with."""

    def __call__(self, argv: Sequence[str] | None = None) -> None: ...


def tool(main: Callable[[Sequence[str] | None], int | None]) -> Tool:
    """Decorate a tool's `main(argv)`: expected errors end it with one line and status 2.

    A status that `main` returns is the tool's, Ctrl-C ends it with 130 as a shell expects. `--traceback`
    among the arguments lets errors through as Python shows them.
    """

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> None:
        arguments = sys.argv[1:] if argv is None else list(argv)
        try:
            status = main(argv)
        except KeyboardInterrupt:
            sys.exit(130)
        except _EXPECTED as error:
            if TRACEBACK in arguments:
                raise
            print(user_error(error), file=sys.stderr)
            sys.exit(FAILURE)
        if status:
            sys.exit(status)

    return run
