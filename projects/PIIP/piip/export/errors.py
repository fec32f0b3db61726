"""Errors that name the module that cannot be exported, and the reason, in one line."""

from __future__ import annotations

import traceback
from typing import Any

from torch import nn
from torch.export import ExportedProgram

__all__ = ["ExportError", "blame", "blame_operator", "expect"]


_LONGEST = 300  # characters of a reason


class ExportError(ValueError):
    """A part of a model cannot be exported; the message names it."""


def expect(part: str, module: Any, *kinds: type) -> None:
    """Refuse a module whose class is none of ``kinds``.

    Subclasses are refused as well: they may compute something else.

    Raises:
        ExportError: naming the part.
    """
    if type(module) not in kinds:
        known = " or a ".join(kind.__name__ for kind in kinds)
        raise ExportError(
            f"{part} is a {type(module).__name__}, which cannot be exported: expected a {known}"
        )


def blame(model: nn.Module, error: Exception) -> ExportError:
    """Turn an error raised while tracing a model into one that names the module and the reason.

    Args:
        model: what was traced.
        error: what tracing raised; the innermost module on its stack is named.
    """
    names = {id(module): name for name, module in model.named_modules()}
    part, kind = "", type(model).__name__
    for frame, _ in traceback.walk_tb(error.__traceback__):
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and names.get(id(owner)):
            part, kind = names[id(owner)], type(owner).__name__
    where = f"{part} ({kind})" if part else kind
    return ExportError(f"{where} cannot be exported: {_first_line(str(error))}")


def blame_operator(program: ExportedProgram, error: Exception) -> ExportError:
    """Turn an error about an operator of a graph into one that names the operator's module and the reason.

    Args:
        program: the graph.
        error: what translation raised; the first operator that it or its cause mentions is named.
    """
    reasons = [str(cause) for cause in _causes(error)]
    text = "\n".join(reasons)
    for node in program.graph.nodes:
        if node.op == "call_function" and str(node.target) in text:
            stack = list(node.meta.get("nn_module_stack", {}).values())
            part = f"{stack[-1][0]}: " if stack and stack[-1][0] else ""
            return ExportError(f"{part}{node.target} cannot be exported: {_first_line(reasons[-1])}")
    return ExportError(f"the model cannot be exported: {_first_line(reasons[-1])}")


def _causes(error: BaseException) -> list[BaseException]:
    """An error and its causes, outermost first."""
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    return causes


def _first_line(text: str) -> str:
    """The first line, shortened: some errors list every parameter of the model."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]} ..."
