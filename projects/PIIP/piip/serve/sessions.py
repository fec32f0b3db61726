"""Analyses of the visitors who may still redraw them, within a bound of memory and time."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict

from .analysis import Analysis

__all__ = ["KEPT_SECONDS", "Sessions"]

KEPT_SECONDS = 600
"""How long an analysis and the files of a visitor are kept."""


class Sessions:
    """The newest analysis of each session. The oldest ones are dropped when all need more than a limit.

    Args:
        most_bytes: limit of all analyses together.
        seconds: after which an analysis is dropped.
    """

    def __init__(self, most_bytes: int = 256_000_000, seconds: float = KEPT_SECONDS) -> None:
        self.most_bytes, self.seconds = most_bytes, seconds
        self._kept: OrderedDict[str, tuple[float, Analysis]] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, session: str, analysis: Analysis) -> None:
        """Replace the analysis of a session."""
        with self._lock:
            self._kept.pop(session, None)
            self._kept[session] = time.monotonic(), analysis
            excess = sum(kept.nbytes for _, kept in self._kept.values()) - self.most_bytes
            while excess > 0 and len(self._kept) > 1:
                _, (_, oldest) = self._kept.popitem(last=False)
                excess -= oldest.nbytes

    def get(self, session: str) -> Analysis | None:
        """The analysis of a session; None where there is none, or none any more."""
        self.drop_expired()
        with self._lock:
            return self._kept[session][1] if session in self._kept else None

    def drop_expired(self) -> None:
        """Drop analyses that are older than :attr:`seconds`."""
        with self._lock:
            limit = time.monotonic() - self.seconds
            while self._kept and next(iter(self._kept.values()))[0] < limit:
                self._kept.popitem(last=False)
