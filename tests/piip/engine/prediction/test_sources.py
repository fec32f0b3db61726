"""Frames of files and of live sources, and what is written of them as they come."""

from __future__ import annotations

import json
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
    UnreadableFileError,
    is_stream,
    open_stream,
    read_files,
)

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
