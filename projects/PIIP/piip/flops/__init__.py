"""What models cost, part by part: as the published tables count, and in fact."""

from .actual import actual_cost
from .published import published_cost
from .report import FORMATS, Part, Report, format_report, format_rows
from .tracing import build_on_meta, count_operators

__all__ = [
    "FORMATS",
    "Part",
    "Report",
    "actual_cost",
    "build_on_meta",
    "count_operators",
    "format_report",
    "format_rows",
    "published_cost",
]
