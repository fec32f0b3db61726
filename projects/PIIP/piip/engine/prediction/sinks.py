"""What prediction writes, piece by piece: records as JSON, and videos. Nothing is kept for the end."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2

from ...images import Image

__all__ = ["JsonWriter", "VideoWriter"]

LINES_SUFFIX = ".jsonl"


class JsonWriter:
    """Writes records as they come: a JSON list, or a line each where the file is named ``.jsonl``.

    The list is whole once the writer is closed, after an error or Ctrl-C too; lines can be read while they
    are written.

    Args:
        path: the file; its folder is made if missing.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lines = path.suffix.lower() == LINES_SUFFIX
        self._file = path.open("w", encoding="utf-8")
        self._empty = True
        if not self._lines:
            self._file.write("[")

    def write(self, records: Iterable[dict[str, Any]]) -> None:
        """Add records."""
        for record in records:
            if not self._lines and not self._empty:
                self._file.write(",\n")
            self._file.write(json.dumps(record))
            if self._lines:
                self._file.write("\n")
            self._empty = False
        if self._lines:
            self._file.flush()

    def __enter__(self) -> JsonWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._lines:
            self._file.write("]\n")
        self._file.close()


class VideoWriter:
    """Writes frames of one size to an .mp4 file, which exists once a first frame was written.

    A frame is shown until the time of the next, so that a live source plays as fast as it was, however few of
    its frames were drawn.

    Args:
        path: the file.
        rate: frames a second.
    """

    def __init__(self, path: Path, rate: float) -> None:
        self._path, self._rate = path, rate
        self._writer: cv2.VideoWriter | None = None
        self._written = 0
        self._shown: Image | None = None

    def write(self, frame: Image, seconds: float) -> None:
        """Show a frame from a time on, in seconds since the first frame.

        Raises:
            OSError: the video cannot be written.
        """
        if self._writer is None:
            height, width = frame.shape[:2]
            codec = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(str(self._path), codec, self._rate, (width, height))
            if not self._writer.isOpened():
                raise OSError(
                    f"cannot write the video {self._path}: check the folder, and OpenCV's mp4 support"
                )
        if self._shown is not None:
            for _ in range(round(seconds * self._rate) - self._written):
                self._writer.write(self._shown)
                self._written += 1
        self._shown = frame

    def close(self) -> None:
        """Write the last frame and finish the file."""
        if self._writer is not None and self._shown is not None:
            self._writer.write(self._shown)
            self._writer.release()
