"""How every tool ends: a user's mistake in one line on stderr and status 2, our own in a traceback.

How an error was raised tells the two apart. What a `raise` statement of this project raises was written for
users. What Python or a library raises on its own, such as the KeyError of a missing key, is a fault of the
program: as one line it would read "error: 3". So a function says what is wrong by raising ValueError, and the
hundreds of places that do need no class of their own.

Importing this module imports neither PyTorch nor Detectron2: `--help` needs none of them.
"""

from __future__ import annotations

import argparse
import dis
import functools
import os
import select
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from ..extras import explain

__all__ = [
    "TRACEBACK",
    "UserError",
    "argument_parser",
    "dataset_root",
    "is_for_users",
    "tool",
    "user_error",
]

TRACEBACK = "--traceback"
FAILURE = 2  # the exit status of a mistake in what a tool was given, as argparse has it
_PIPE_CLOSED, _INTERRUPTED = 141, 130  # as shells have them: 128 + the number of the signal

_FOR_USERS = (ValueError, LookupError, FloatingPointError, ImportError)
_PACKAGES = ("piip", "piip_ops", "lab")
_REPORT = (
    "this is a fault of the program, not of what it was given: please open an issue with the command line "
    "and this traceback"
)


class UserError(Exception):
    """An error for users that comes from another process, where it was told apart already."""


def dataset_root() -> Path:
    """Where datasets are: `DETECTRON2_DATASETS`, or `datasets` in the working folder, as in Detectron2."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))


def argument_parser(**settings: Any) -> argparse.ArgumentParser:
    """A parser with what all tools take; `settings` are argparse's."""
    parser = argparse.ArgumentParser(**settings)
    parser.add_argument(TRACEBACK, action="store_true", help="show where in the program an error was raised")
    return parser


def is_for_users(error: BaseException, program: str = "") -> bool:
    """Whether an error says what is wrong with the input, rather than with the program.

    Such are all errors of the operating system, packages that are not installed, and what a `raise` statement
    of this project raised.

    Args:
        error: that was caught.
        program: file of the tool, whose `raise` statements count, too.
    """
    if isinstance(error, OSError | UserError):
        return True
    if isinstance(error, ModuleNotFoundError) and explain(error) is not None:
        return True
    trace = error.__traceback__
    if trace is None or not isinstance(error, _FOR_USERS):
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    frame = trace.tb_frame
    package = str(frame.f_globals.get("__name__")).partition(".")[0]
    ours = package in _PACKAGES or frame.f_code.co_filename == program
    return ours and frame.f_code.co_code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"]


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
    """Decorate a tool's `main(argv)`: errors for users end it with one line and status 2.

    Other errors keep their traceback, after a line that asks to report them. A status that `main` returns is
    the tool's. Ctrl-C ends it with 130, a reader of its output that has gone, as `head` does, with 141: as a
    shell expects, and without a word. `--traceback` among the arguments lets all errors through.
    """
    program = main.__code__.co_filename

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> None:
        arguments = sys.argv[1:] if argv is None else list(argv)
        try:
            try:
                status = main(argv)
            finally:
                sys.stdout.flush()  # here, where an error can be caught, rather than when Python ends
        except KeyboardInterrupt:
            sys.exit(_INTERRUPTED)
        except Exception as error:
            if isinstance(error, BrokenPipeError) and _reader_is_gone():
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what is still in buffers
                sys.exit(_PIPE_CLOSED)
            if TRACEBACK in arguments:
                raise
            if not is_for_users(error, program):
                print(_REPORT, file=sys.stderr)
                raise
            print(user_error(error), file=sys.stderr)
            sys.exit(FAILURE)
        if status:
            sys.exit(status)

    return run


def _reader_is_gone() -> bool:
    """Whether standard output is a pipe that nobody reads any more."""
    poll = select.poll()
    poll.register(1, 0)  # errors are reported whatever is asked for
    return any(event & select.POLLERR for _, event in poll.poll(0))
