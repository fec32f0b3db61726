"""Read metrics.json, which a training writes."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

__all__ = ["read_records"]

_logger = logging.getLogger("detectron2.piip")


def read_records(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The records in a metrics.json, and the number of damaged lines, which the log says.

    A last line that was cut off, as where the process was killed while it wrote, does not count.

    Args:
        path: with a JSON object per line, which has an "iteration".
    """
    lines = path.read_bytes().splitlines()
    records = [_record(line) for line in lines]
    damaged = sum(record is None for record in records[:-1])
    if damaged:
        _logger.warning(f"{path} is damaged: {damaged} of its {len(lines)} lines are no records of metrics")
    return [record for record in records if record is not None], damaged


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # no JSON, or no text at all
        return None
    return record if isinstance(record, dict) and isinstance(record.get("iteration"), int) else None
