"""The result of a count: a tree of components, and its text formats."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["FORMATS", "Format", "Part", "Report", "format_report", "format_rows"]

Format = Literal["table", "markdown", "csv", "json"]
FORMATS: tuple[Format, ...] = ("table", "markdown", "csv", "json")

Accounting = Literal["actual", "published"]

ACCOUNTINGS: dict[Accounting, str] = {
    "actual": "multiply-adds of the operators that run, window padding included",
    "published": "rules of the published tables: linear merge, 1000-way head, no pyramid, no window padding",
}


@dataclass
class Part:
    """Cost of one part of a model, the parts it is made of included.

    Attributes:
        macs: multiply-adds for one image. One multiply-add is one FLOP, here as in the published tables.
        params: number of parameters.
        parts: name -> what it is made of; empty, or everything.
    """

    macs: float = 0.0
    params: int = 0
    parts: dict[str, Part] = field(default_factory=dict)

    @property
    def gflops(self) -> float:
        """Multiply-adds in units of 1e9."""
        return self.macs / 1e9

    @property
    def params_m(self) -> float:
        """Parameters in millions."""
        return self.params / 1e6

    def add(self, path: Sequence[str], *, macs: float = 0.0, params: int = 0) -> None:
        """Add a cost to the part at ``path`` and to all above it."""
        self.macs += macs
        self.params += params
        if path:
            self.parts.setdefault(path[0], Part()).add(path[1:], macs=macs, params=params)

    def walk(self, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Part]]:
        """All parts below this one with their paths, each before what it is made of."""
        for name, part in self.parts.items():
            yield (*path, name), part
            yield from part.walk((*path, name))

    def as_dict(self) -> dict[str, Any]:
        """``{"gflops", "params_m"}`` and, where there are any, ``"parts"``."""
        numbers: dict[str, Any] = {"gflops": self.gflops, "params_m": self.params_m}
        if self.parts:
            numbers["parts"] = {name: part.as_dict() for name, part in self.parts.items()}
        return numbers


@dataclass(frozen=True)
class Report:
    """The cost of a model.

    Attributes:
        accounting: the rules it was counted by.
        input_size: height and width of the image in pixels.
        total: the tree.
        not_counted: what runs but was not counted, a phrase each.
    """

    accounting: Accounting
    input_size: tuple[int, int]
    total: Part
    not_counted: Sequence[str] = ()

    def as_dict(self) -> dict[str, Any]:
        """The report as json has it; ``parts`` nests."""
        return {
            "accounting": self.accounting,
            "accounting_rules": ACCOUNTINGS[self.accounting],
            "input_size": list(self.input_size),
            "total_gflops": self.total.gflops,
            "total_params_m": self.total.params_m,
            "parts": self.total.as_dict()["parts"],
            "not_counted": list(self.not_counted),
        }


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def format_rows(rows: Sequence[Mapping[str, Any]], style: Literal["table", "markdown", "csv"]) -> str:
    """Rows, all with the keys of the first, as text; numbers to two decimals, None as an empty cell."""
    header = list(rows[0])
    cells = [[_cell(row[key]) for key in header] for row in rows]
    if style == "csv":
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([header, *cells])
        return text.getvalue().rstrip("\n")
    numeric = [all(isinstance(row[key], int | float | None) for row in rows) for key in header]
    if style == "markdown":
        lines = [header, ["---:" if right else "---" for right in numeric], *cells]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)
    widths = [max(len(line[i]) for line in [header, *cells]) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in [header, *cells]
    )


def format_report(report: Report, style: Format) -> str:
    """A report as text: a line for each part, below the part it belongs to, with its share of the total."""
    if style == "json":
        return json.dumps(report.as_dict(), indent=2)
    indent = {"table": "  ", "markdown": "&emsp;", "csv": ""}[style]
    total = report.total

    def row(path: tuple[str, ...], part: Part) -> dict[str, Any]:
        name = "/".join(path) if style == "csv" else indent * (len(path) - 1) + path[-1]
        share = 100 * part.macs / total.macs if total.macs else 0.0
        return {"part": name, "gflops": part.gflops, "params_m": part.params_m, "share_percent": share}

    rows = [row(("total",), total), *(row(path, part) for path, part in total.walk())]
    if style == "csv":
        # a table of its own: what applies to all of it stands in every row
        extra = {"accounting": report.accounting, "input_size": "x".join(map(str, report.input_size))}
        return format_rows([{**r, **extra} for r in rows], style)
    lines = [
        f"accounting: {report.accounting} ({ACCOUNTINGS[report.accounting]})",
        f"input: {report.input_size[0]} x {report.input_size[1]} px, one image; one multiply-add is one FLOP",
        *(["not counted: " + "; ".join(report.not_counted)] if report.not_counted else []),
        "",
        format_rows(rows, style),
    ]
    return "\n".join(lines)
