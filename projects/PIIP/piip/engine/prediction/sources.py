"""Images to predict on: files, folders, globs, videos, cameras and streams, decoded in a thread."""

from __future__ import annotations

import glob
import logging
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2

from ...images import (
    IMAGE_SUFFIXES,
    Image,
    UnreadableFileError,
    check_regular,
    list_files,
    read_image,
    utf8_path,
)
from ..data.prefetch import prefetch

__all__ = [
    "VIDEO_SUFFIXES",
    "Frame",
    "LiveFrames",
    "Skipped",
    "expand_inputs",
    "is_stream",
    "open_stream",
    "read_files",
]

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"})

_DEFAULT_RATE = 25.0
_MAX_RATE = 1000.0  # sources without a fixed rate report 0, or the 1,000 or 90,000 ticks of their clock
_MAX_FRAMES = 10**9  # a larger number of frames in a header is not taken for one
_MAX_DAMAGED = 10_000  # frames in a row that cannot be read: the rest of the file is given up
_TIMEOUT_MS = 15_000  # for opening a stream, and for its next frame
_PAUSES = (1.0, 2.0, 4.0)  # seconds before each attempt to open a silent stream again

_logger = logging.getLogger("detectron2.piip")


@dataclass(frozen=True)
class Moment:
    """The place of a frame in a video or stream.

    Attributes:
        number: number of the frame, from 0. Frames that cannot be read and frames of a live source that were
            dropped count as well.
        seconds: time since the first frame.
        rate: frames per second of the video, or the rate that a live source promises.
        length: number of frames that the video says it has; None for a live source.
        first: whether it is the first frame that is read.
    """

    number: int
    seconds: float
    rate: float
    length: int | None
    first: bool


@dataclass(frozen=True)
class Frame:
    """One image to predict on, its source as given and, for a video or stream, its place there."""

    image: Image
    source: Path | str
    moment: Moment | None = None


@dataclass(frozen=True)
class Skipped:
    """A file that cannot be read, or frames of a video that cannot; and why.

    Attributes:
        source: the file.
        reason: what is wrong.
        partly: frames of the file were read.
    """

    source: Path | str
    reason: str
    partly: bool = False


def expand_inputs(inputs: Iterable[str]) -> list[Path]:
    """The files that names of files, folders and globs stand for, in order.

    A folder stands for its images and videos, without those of the folders inside; the log counts and names
    what is left out. A name that matches nothing is kept: it is reported when it cannot be read.
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
    """Whether an input is the number of a camera or the address of a stream instead of a file."""
    return "://" in name or (name.isdecimal() and not Path(name).exists())


def read_files(files: Iterable[Path]) -> Iterator[Frame | Skipped]:
    """Every image, and every frame of every video, in order; what cannot be read comes as `Skipped`."""
    for path in files:
        try:
            if path.suffix.lower() in VIDEO_SUFFIXES:
                check_regular(path)
                with utf8_path(path) as name:
                    yield from _recorded(cv2.VideoCapture(name, cv2.CAP_FFMPEG), path)
            else:
                yield Frame(read_image(path), path)
        except UnreadableFileError as error:
            yield Skipped(path, error.reason)
        except cv2.error as error:
            yield Skipped(path, f"OpenCV cannot read it ({error.err})")


def open_stream(name: str) -> Generator[Frame | Skipped, None, None] | LiveFrames:
    """Frames of a camera (its number) or of an address (rtsp://, http://, ...).

    A live source gives its newest frame each time one is asked for. A recorded video, which knows its length,
    gives every frame.

    Raises:
        OSError: the source cannot be opened.
    """
    capture = _capture(name)
    if not capture.isOpened():
        kind = f"camera {name}" if name.isdecimal() else name
        raise OSError(
            f"cannot open {kind}: expected the number of a camera, or the address of a running stream"
        )
    if capture.get(cv2.CAP_PROP_FRAME_COUNT) > 0:
        return prefetch(_recorded(capture, name))
    return LiveFrames(capture, name)


def _capture(name: str) -> cv2.VideoCapture:
    if name.isdecimal():
        return cv2.VideoCapture(int(name))
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, _TIMEOUT_MS]
    return cv2.VideoCapture(name, cv2.CAP_FFMPEG, limits)


def _timed_out(asked: float) -> bool:
    """Whether a read that failed waited for its source; a source that has ended says so at once."""
    return time.monotonic() - asked > _TIMEOUT_MS / 2e3


def _rate(capture: cv2.VideoCapture) -> float:
    rate = float(capture.get(cv2.CAP_PROP_FPS))
    return rate if 0 < rate < _MAX_RATE else _DEFAULT_RATE


def _recorded(capture: cv2.VideoCapture, source: Path | str) -> Iterator[Frame | Skipped]:
    """All frames of a video that can be read, and at the end how many of those it says it has cannot."""
    count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    rate, length = _rate(capture), int(count) if 0 < count < _MAX_FRAMES else 1
    number = read = damaged = 0
    try:
        # OpenCV reports a damaged frame and the end of the file alike: only the header tells them apart
        while True:
            asked = time.monotonic()
            more, frame = capture.read()
            if more:
                yield Frame(frame, source, Moment(number, number / rate, rate, length, first=read == 0))
                read += 1
            damaged = 0 if more else damaged + 1
            number += 1
            if not more and (number >= length or damaged == _MAX_DAMAGED or _timed_out(asked)):
                break
    finally:
        capture.release()
    if read == 0:
        raise UnreadableFileError(source, "no frame can be read: it is missing, damaged or not a video")
    if read < length:
        yield Skipped(source, f"{length - read} of its {length} frames cannot be read", partly=True)


class LiveFrames(Iterator[Frame]):
    """The newest frame of a live source, each time one is asked for.

    A thread decodes all frames, as codecs and the buffers of the source need, and keeps the last one only: a
    slow model sees fewer frames, never older ones. A source that sends nothing for 15 seconds is opened
    again, three times at most. The log says so, and when the source ends.

    Args:
        capture: an open source.
        source: its name.

    Attributes:
        received: number of frames decoded so far.
    """

    def __init__(self, capture: cv2.VideoCapture, source: str) -> None:
        self.received = 0
        self._capture, self._source, self._rate = capture, source, _rate(capture)
        self._fresh = threading.Condition()
        self._newest: Frame | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._decode, name=f"frames of {source}", daemon=True)
        self._thread.start()

    def _read(self) -> Image | None:
        """The next frame, or None at the end. A source that does not answer is opened again."""
        for pause in (*_PAUSES, None):
            asked = time.monotonic()
            more, image = self._capture.read()
            if more:
                return image
            ended = self._capture.isOpened() and not _timed_out(asked)
            if ended or pause is None or self._ended.is_set():
                break
            _logger.warning(
                f"{self._source} does not answer, after {self.received} frames: "
                f"it is opened again in {pause:g} seconds"
            )
            self._capture.release()
            if self._ended.wait(pause):
                break
            self._capture = _capture(self._source)
        if not self._ended.is_set():
            _logger.warning(f"{self._source} ended after {self.received} frames")
        return None

    def _decode(self) -> None:
        start = 0.0
        try:
            while not self._ended.is_set() and (image := self._read()) is not None:
                now = time.monotonic()
                start = start or now
                with self._fresh:
                    first = self.received == 0
                    moment = Moment(self.received, now - start, self._rate, None, first)
                    self._newest = Frame(image, self._source, moment)
                    self.received += 1
                    self._fresh.notify()
        finally:
            self._capture.release()
            self._ended.set()
            with self._fresh:
                self._fresh.notify()

    def __next__(self) -> Frame:
        with self._fresh:
            self._fresh.wait_for(lambda: self._newest is not None or self._ended.is_set())
            frame, self._newest = self._newest, None
        if frame is None:
            raise StopIteration
        return frame

    def close(self) -> None:
        """Stop decoding and let go of the source."""
        self._ended.set()
        self._thread.join(timeout=2 * _TIMEOUT_MS / 1e3)
