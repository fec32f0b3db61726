"""Images to predict on: files, folders, globs, videos, cameras and streams, decoded in a thread."""

from __future__ import annotations

import glob
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2

from ...images import IMAGE_SUFFIXES, Image, UnreadableFileError, check_regular, list_files, read_image
from ..data.prefetch import prefetch

read_image_file = read_image  # until the web page reads by `piip.images` itself

__all__ = [
    "IMAGE_SUFFIXES",
    "VIDEO_SUFFIXES",
    "Frame",
    "Image",
    "LiveFrames",
    "Skipped",
    "UnreadableFileError",
    "expand_inputs",
    "is_stream",
    "open_stream",
    "read_files",
    "read_image_file",
]

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"})

_DEFAULT_RATE = 25.0
_RATES = (1.0, 240.0)  # streams without a fixed rate report 0, or the ticks of their clock
_TIMEOUT_MS = 15_000  # of opening a stream, and of waiting for its next frame


@dataclass(frozen=True)
class Moment:
    """Where in a video or stream a frame is.

    Attributes:
        number: of the frame, from 0; frames of a live source that were passed over count.
        seconds: since the first frame.
        rate: frames a second of the video, or those that a live source promises.
        length: how many frames the video says it has; None where it has no end.
    """

    number: int
    seconds: float
    rate: float
    length: int | None


@dataclass(frozen=True)
class Frame:
    """One image to predict on: its source as it was given, and its place there unless that is an image."""

    image: Image
    source: Path | str
    moment: Moment | None = None


@dataclass(frozen=True)
class Skipped:
    """A file that could not be read, and why."""

    source: Path | str
    reason: str


def expand_inputs(inputs: Iterable[str]) -> list[Path]:
    """Files meant by names of files, folders (their images and videos, not deeper) and globs, in order.

    A name that matches nothing is kept, so that it is reported when it cannot be read.
    """
    files: list[Path] = []
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            files += list_files(path, IMAGE_SUFFIXES | VIDEO_SUFFIXES)
        elif path.exists():
            files.append(path)
        else:
            files += [Path(match) for match in sorted(glob.glob(name, recursive=True))] or [path]
    return files


def is_stream(name: str) -> bool:
    """Whether an input is the number of a camera or the address of a stream, and not a file."""
    return "://" in name or (name.isdecimal() and not Path(name).exists())


def read_files(files: Iterable[Path]) -> Iterator[Frame | Skipped]:
    """Every image, and every frame of every video, in order; what cannot be read as :class:`Skipped`."""
    for path in files:
        try:
            if path.suffix.lower() in VIDEO_SUFFIXES:
                check_regular(path)
                yield from _recorded(cv2.VideoCapture(str(path)), path)
            else:
                yield Frame(read_image(path), path)
        except UnreadableFileError as error:
            yield Skipped(path, error.reason)


def open_stream(name: str) -> Generator[Frame, None, None] | LiveFrames:
    """Frames of a camera (its number) or of an address (rtsp://, http://, ...).

    A live source gives its newest frame whenever one is asked for; a recorded video, which knows its length,
    gives every frame.

    Raises:
        OSError: it cannot be opened.
    """
    if name.isdecimal():
        capture = cv2.VideoCapture(int(name))
    else:
        limits = [
            *(cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _TIMEOUT_MS),
            *(cv2.CAP_PROP_READ_TIMEOUT_MSEC, _TIMEOUT_MS),
        ]
        capture = cv2.VideoCapture(name, cv2.CAP_FFMPEG, limits)
    if not capture.isOpened():
        kind = f"camera {name}" if name.isdecimal() else name
        raise OSError(
            f"cannot open {kind}: expected the number of a camera, or the address of a running stream"
        )
    if capture.get(cv2.CAP_PROP_FRAME_COUNT) > 0:
        return prefetch(_recorded(capture, name))
    return LiveFrames(capture, name)


def _rate(capture: cv2.VideoCapture) -> float:
    rate = float(capture.get(cv2.CAP_PROP_FPS))
    return rate if _RATES[0] <= rate <= _RATES[1] else _DEFAULT_RATE


def _recorded(capture: cv2.VideoCapture, source: Path | str) -> Iterator[Frame]:
    rate, length = _rate(capture), max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 1)
    number = 0
    try:
        while True:
            more, frame = capture.read()
            if not more:
                break
            yield Frame(frame, source, Moment(number, number / rate, rate, length))
            number += 1
    finally:
        capture.release()
    if number == 0:
        raise UnreadableFileError(source, "no frame can be read: missing, or not a video")


class LiveFrames(Iterator[Frame]):
    """The newest frame of a live source, each time one is asked for.

    A thread decodes all frames, as codecs and the source's buffers need, and keeps the last one only: a slow
    model sees fewer frames, never older ones.

    Args:
        capture: an open source.
        source: its name.

    Attributes:
        received: frames decoded so far.
    """

    def __init__(self, capture: cv2.VideoCapture, source: str) -> None:
        self.received = 0
        self._capture, self._source, self._rate = capture, source, _rate(capture)
        self._fresh = threading.Condition()
        self._newest: Frame | None = None
        self._ended = False
        self._thread = threading.Thread(target=self._decode, name=f"frames of {source}", daemon=True)
        self._thread.start()

    def _decode(self) -> None:
        start = 0.0
        try:
            while not self._ended:
                more, image = self._capture.read()
                if not more:
                    break
                now = time.monotonic()
                start = start or now
                with self._fresh:
                    moment = Moment(self.received, now - start, self._rate, None)
                    self._newest = Frame(image, self._source, moment)
                    self.received += 1
                    self._fresh.notify()
        finally:
            self._capture.release()
            with self._fresh:
                self._ended = True
                self._fresh.notify()

    def __next__(self) -> Frame:
        with self._fresh:
            self._fresh.wait_for(lambda: self._newest is not None or self._ended)
            frame, self._newest = self._newest, None
        if frame is None:
            raise StopIteration
        return frame

    def close(self) -> None:
        """Stop decoding and let go of the source."""
        self._ended = True
        self._thread.join(timeout=2 * _TIMEOUT_MS / 1e3)
