"""Writers of predictions: JSON records and videos, written as they come."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2

from ...images import Image, printable, utf8_path

__all__ = ["JsonWriter", "VideoWriter"]

LINES_SUFFIX = ".jsonl"


class JsonWriter:
    """Writes records as they come: one JSON list, or a line per record if the name ends in ``.jsonl``.

    The list is complete once the writer is closed, also after an error or Ctrl-C. Lines can be read while
    the file grows.

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
    """Writes frames of one size to an .mp4 file. The file exists once the first frame is written.

    A frame is repeated until the time of the next one: the video of a live source has the speed of the
    source, however few frames were drawn.

    Args:
        path: the file.
        rate: frames per second.
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
            with utf8_path(self._path) as name:
                self._writer = cv2.VideoWriter(name, cv2.CAP_FFMPEG, codec, self._rate, (width, height))
            if not self._writer.isOpened():
                raise OSError(f"cannot write the video {printable(self._path)}: check the folder and OpenCV")
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
