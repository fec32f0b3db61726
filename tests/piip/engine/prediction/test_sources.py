"""Frames of files and of live sources, and what is written of them as they come."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from .... import require

require.detectron2()

import cv2

from piip.engine.data.prefetch import prefetch
from piip.engine.prediction.sinks import JsonWriter, VideoWriter
from piip.engine.prediction.sources import (
    Frame,
    LiveFrames,
    Skipped,
    expand_inputs,
    is_stream,
    open_stream,
    read_files,
)
from piip.images import UnreadableFileError

from ...live_camera import number_of, numbered, running_camera


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "twelve.mp4"
    writer = VideoWriter(path, 10.0)
    for number in range(12):
        writer.write(numbered(number), number / 10)
    writer.close()
    return path


@pytest.fixture
def camera() -> Iterator[str]:
    with running_camera() as address:
        yield address


def test_files_give_every_frame_in_order(video: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "still.png"), numbered(5))
    items = list(prefetch(read_files([video, tmp_path / "missing.jpg", tmp_path / "still.png"])))
    frames = [item for item in items if isinstance(item, Frame)]
    assert [number_of(frame.image) for frame in frames] == [*range(12), 5]
    assert [frame.moment.number for frame in frames if frame.moment] == list(range(12))
    assert [frame.moment.seconds for frame in frames if frame.moment] == pytest.approx(np.arange(12) / 10)
    assert frames[-1].moment is None
    assert isinstance(items[12], Skipped) and items[12].source == tmp_path / "missing.jpg"


def damaged(path: Path, first: float, last: float) -> Path:
    """The video with the bytes of a share of its file overwritten; with `last` beyond 1 it is cut there."""
    content = path.read_bytes()
    a, b = int(len(content) * first), int(len(content) * min(last, 1))
    path.write_bytes(content[:a] if last > 1 else content[:a] + bytes(b - a) + content[b:])
    return path


def noisy(path: Path, codec: str) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 25.0, (64, 48))
    for number in range(24):
        noise = np.random.default_rng(number).integers(0, 60, (48, 64, 3), np.uint8)
        writer.write(noise + np.uint8(8 * number))
    writer.release()
    return path


@pytest.mark.parametrize(
    ("name", "codec", "first", "last"), [("a.mp4", "mp4v", 0.4, 0.6), ("b.avi", "MJPG", 0.5, 2)]
)
def test_a_damaged_video_is_read_to_its_end(
    name: str, codec: str, first: float, last: float, tmp_path: Path
) -> None:
    """Frames behind the damage come with their own numbers, and what is missing is counted."""
    path = damaged(noisy(tmp_path / name, codec), first, last)
    *frames, lost = read_files([path])
    numbers = [frame.moment.number for frame in frames if isinstance(frame, Frame) and frame.moment]
    assert len(frames) == len(numbers) > 5 and numbers == sorted(set(numbers))
    assert lost == Skipped(path, f"{24 - len(frames)} of its 24 frames cannot be read", partly=True)
    if name == "a.mp4":
        assert numbers[-1] == 23 and len(frames) < 24
    assert [frame.moment.first for frame in frames if isinstance(frame, Frame) and frame.moment][:2] == [
        True,
        False,
    ]


@pytest.mark.parametrize("rate", [0.2, 0.5, 29.97, 480.0])
def test_rates_are_kept(rate: float, tmp_path: Path) -> None:
    """Time lapses and slow motion; and a name that is not UTF-8, on which OpenCV ends the process."""
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mp4"))
    writer = VideoWriter(path, rate)
    for number in range(3):
        writer.write(numbered(number), number / rate)
    writer.close()
    moments = [frame.moment for frame in read_files([path]) if isinstance(frame, Frame) and frame.moment]
    assert [moment.seconds for moment in moments] == pytest.approx(np.arange(3) / rate)
    assert {moment.rate for moment in moments} == {rate}


def test_what_is_no_file_is_never_opened(tmp_path: Path) -> None:
    """Named pipes, also with the ending of a video, and devices would block or never end."""
    os.mkfifo(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.mp4")
    (tmp_path / "c.jpg").symlink_to("/dev/zero")
    skipped = [item for item in read_files(expand_inputs([str(tmp_path)])) if isinstance(item, Skipped)]
    assert [item.reason.partition(":")[0] for item in skipped] == ["it is a named pipe"] * 2 + [
        "it is a device"
    ]


def test_a_silent_source_is_opened_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each frame of each connection comes once; a source that stays silent ends."""
    monkeypatch.setattr("piip.engine.prediction.sources._TIMEOUT_MS", 600)
    monkeypatch.setattr("piip.engine.prediction.sources._PAUSES", (0.05, 0.1))
    with running_camera(silent_after=5, connections=2) as address:
        live = open_stream(address)
        assert isinstance(live, LiveFrames)
        for _ in live:
            pass
    assert live.received == 10
    said = [record.message.removeprefix(address) for record in caplog.records]
    assert said == [
        " does not answer, after 5 frames: it is opened again in 0.05 seconds",
        " does not answer, after 10 frames: it is opened again in 0.05 seconds",
        " does not answer, after 10 frames: it is opened again in 0.1 seconds",
        " ended after 10 frames",
    ]


def test_a_slow_model_sees_the_newest_frame_of_a_camera(camera: str) -> None:
    """Frames that came meanwhile are passed over; the last one is seen, and then it ends."""
    live = open_stream(camera)
    assert isinstance(live, LiveFrames)
    seen = []
    for frame in live:
        seen.append(number_of(frame.image))
        assert frame.moment is not None and frame.moment.length is None
        assert frame.moment.number == seen[-1]
        time.sleep(0.15)
    live.close()
    assert seen == sorted(set(seen))
    assert len(seen) < 20 == live.received
    assert seen[-1] == 19


def test_a_camera_can_be_let_go_of(camera: str) -> None:
    live = open_stream(camera)
    next(live)
    live.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("frames of")]


def test_a_recorded_address_gives_every_frame(video: Path) -> None:
    frames = list(open_stream(video.as_uri()))
    assert [number_of(frame.image) for frame in frames] == list(range(12))


@pytest.mark.parametrize("name", ["7", "rtsp://127.0.0.1:1/none"])
def test_what_cannot_be_opened(name: str) -> None:
    with pytest.raises(OSError, match=r"cannot open .*: expected the number of a camera, or the address"):
        open_stream(name)


def test_which_inputs_are_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "1").mkdir()
    assert [is_stream(name) for name in ("0", "1", "rtsp://host/live", "a.mp4")] == [True, False, True, False]


def test_reading_ahead_stays_bounded_and_ends_with_its_reader() -> None:
    made = []

    def make() -> Iterator[int]:
        for number in range(1000):
            made.append(number)
            yield number

    items = prefetch(make(), depth=3)
    assert [next(items), next(items)] == [0, 1]
    time.sleep(0.3)
    assert len(made) <= 2 + 3 + 1  # taken, waiting, and one in hand
    items.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "reading"]


def test_errors_while_reading_ahead_arrive_in_their_place() -> None:
    def make() -> Iterator[int]:
        yield 1
        raise UnreadableFileError("no more")

    items = prefetch(make())
    assert next(items) == 1
    with pytest.raises(UnreadableFileError, match="no more"):
        next(items)
    assert next(items, None) is None


def test_a_live_video_plays_as_fast_as_it_was(tmp_path: Path) -> None:
    """Each frame is repeated until the next one's time; one that no moment is left for gives way."""
    writer = VideoWriter(tmp_path / "live.mp4", 10.0)
    for number, seconds in ((0, 0.0), (1, 0.52), (2, 0.53), (3, 1.0)):
        writer.write(numbered(number), seconds)
    writer.close()
    shown = [item for item in read_files([tmp_path / "live.mp4"]) if isinstance(item, Frame)]
    assert [number_of(frame.image) for frame in shown] == [0] * 5 + [2] * 5 + [3]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_records_are_written_as_they_come(tmp_path: Path, count: int) -> None:
    """A list that is whole after an error too, or lines that are there at once."""
    records = [{"number": number} for number in range(count)]
    with pytest.raises(KeyboardInterrupt), JsonWriter(tmp_path / "new/list.json") as writer:
        writer.write(records[:1])
        writer.write(records[1:])
        raise KeyboardInterrupt
    assert json.loads((tmp_path / "new/list.json").read_text()) == records
    with JsonWriter(tmp_path / "lines.jsonl") as writer:
        writer.write(records)
        lines = (tmp_path / "lines.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == records
