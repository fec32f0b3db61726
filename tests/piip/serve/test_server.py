"""What visitors, and others, may send to the page: a sentence for them and one line of the log."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ... import require

require.detectron2()
pytest.importorskip("gradio", reason="needs Gradio (make setup installs it)")

import httpx
import numpy as np
from PIL import Image as PillowImage
from PIL import ImageFile

from piip.serve import privacy
from piip.serve.analysis import Analysis, Model
from piip.serve.page import drawn_examples
from piip.serve.sessions import Sessions
from piip.serve.upload import Limits

from .serving import served


class Visitor:
    """What a browser sends, and other things."""

    def __init__(self, address: str, sessions: Sessions) -> None:
        self.sessions = sessions
        self.client = httpx.Client(base_url=address, timeout=60)
        config = self.client.get("/config").json()
        self.functions = {each["api_name"]: each["id"] for each in config["dependencies"]}
        self.model = next(
            c["props"]["value"] for c in config["components"] if c["props"].get("label") == "model"
        )

    def upload(self, path: Path) -> dict[str, Any]:
        with path.open("rb") as file:
            (stored,) = self.client.post("/gradio_api/upload", files={"files": file}).json()
        return {"path": stored, "meta": {"_type": "gradio.FileData"}}

    def send(self, function: str, data: list[Any], session: str = "one") -> Any:
        """The outputs of an event; its error, as the visitor sees it, is raised."""
        event = {"data": data, "fn_index": self.functions[function], "session_hash": session}
        self.client.post("/gradio_api/queue/join", json=event).raise_for_status()
        url = f"/gradio_api/queue/data?session_hash={session}"
        with self.client.stream("GET", url) as stream:
            for line in stream.iter_lines():
                message = json.loads(line.removeprefix("data:") or "{}")
                if message.get("msg") == "process_completed":
                    if not message["success"]:
                        raise RuntimeError(message["output"]["error"])
                    return message["output"]["data"]
        raise AssertionError("no answer")

    def analyse(self, image: Any, threshold: Any = 0.05, session: str = "one") -> Any:
        return self.send("analyse", [image, self.model, threshold, [], ["boxes", "masks"]], session)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Visitor, Model]]:
    with served(tmp_path_factory.mktemp("page"), Limits()) as (address, page, model):
        yield Visitor(address, page.sessions), model


@pytest.fixture
def image(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    PillowImage.fromarray(pixels).save(tmp_path / "image.png")
    return tmp_path / "image.png"


def failure(visitor: Visitor, caplog: pytest.LogCaptureFixture, *sent: Any) -> str:
    """The sentence that a visitor is told; the log has one line for it."""
    caplog.clear()
    with pytest.raises(RuntimeError) as told:
        visitor.analyse(*sent)
    (record,) = (record for record in caplog.records if record.name == "detectron2.piip")
    assert "\n" not in record.getMessage()
    return str(told.value)


def test_an_analysis(page: tuple[Visitor, Model], image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    visitor, _ = page
    uploaded = visitor.upload(image)
    _, picture, found, rows, gallery = visitor.analyse(uploaded)
    assert picture["path"].endswith(".png") and found["data"] and len(gallery) == 4
    assert [row[0] for row in rows["data"]][-2:] == ["heads and post-processing", "all"]
    best = found["data"][0][0]
    _, redrawn = visitor.send("redraw", [True, 0.05, [best], ["boxes"]])
    assert {row[0] for row in redrawn["data"]} == {best}
    monkeypatch.setattr(visitor.sessions, "seconds", 0)
    with pytest.raises(RuntimeError, match=r"was dropped to make room for others\. Press Analyse again"):
        visitor.send("redraw", [True, 0.05, [], ["boxes"]])


def test_large_images_are_refused_undecoded(
    page: tuple[Visitor, Model],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """20 kB that would be 169 megapixels."""
    visitor, _ = page
    PillowImage.new("1", (13_000, 13_000)).save(tmp_path / "13k.png")
    uploaded = visitor.upload(tmp_path / "13k.png")

    def decode(*_: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", decode)
    told = failure(visitor, caplog, uploaded)
    assert told.startswith("This file is refused: it has 13000x13000 px: expected at most 40 megapixels")


def test_only_uploads_are_read(
    page: tuple[Visitor, Model], image: Path, caplog: pytest.LogCaptureFixture
) -> None:
    visitor, _ = page
    elsewhere = {"path": str(image), "meta": {"_type": "gradio.FileData"}}
    assert failure(visitor, caplog, elsewhere).startswith("The analysis failed")
    told = failure(visitor, caplog, {"path": str(image)})
    assert told == "This page reads uploaded files only. Please upload the image."
    address = {"path": "http://192.0.2.1/image.png", "meta": {"_type": "gradio.FileData"}}
    assert failure(visitor, caplog, address).startswith("This page fetches no image from an address")
    assert failure(visitor, caplog, None).startswith("There is no image yet")


def test_forged_events(
    page: tuple[Visitor, Model],
    image: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    visitor, _ = page
    uploaded = visitor.upload(image)
    for forged in (["x"], [5], [[]], [uploaded, "much"], [uploaded, None]):
        assert failure(visitor, caplog, *forged).startswith("The analysis failed")
    assert (
        visitor.client.post("/gradio_api/run/analyse", json={"data": []}).status_code == 404
    )  # past the queue
    assert "Traceback" not in "".join(capsys.readouterr())


def test_an_error_of_the_model_is_one_line_of_the_log(
    page: tuple[Visitor, Model],
    image: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    visitor, model = page

    def broken(_: Any) -> Analysis:
        raise RuntimeError("can't allocate\nmemory")

    monkeypatch.setattr(model, "analyse", broken)
    assert failure(visitor, caplog, visitor.upload(image)).startswith("The analysis failed. Try another")
    assert "RuntimeError: can't allocate memory" in caplog.text


def test_sessions_are_bounded_in_memory_and_time(page: tuple[Visitor, Model]) -> None:
    _, model = page
    analysis = model.analyse(np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8))
    assert analysis.picture.nbytes < analysis.nbytes < 2 * analysis.picture.nbytes  # masks are run lengths
    sessions = Sessions(most_bytes=3 * analysis.nbytes)
    for name in ("first", "second", "third", "first", "fourth"):  # what was analysed last stays
        sessions.keep(name, analysis)
    kept = [name for name in ("first", "second", "third", "fourth") if sessions.get(name)]
    assert kept == ["first", "third", "fourth"]
    brief = Sessions(seconds=0)
    brief.keep("one", analysis)
    assert brief.get("one") is None


def test_examples_are_of_classes_that_a_model_knows(page: tuple[Visitor, Model], tmp_path: Path) -> None:
    _, model = page
    other = SimpleNamespace(classes=["cat", "dog"])
    assert drawn_examples([other], tmp_path) == []
    assert len(drawn_examples([other, model], tmp_path)) == 2


PRIVATE = f"""
import runpy, signal, tempfile
with runpy.run_path({privacy.__file__!r})["private_folder"]() as folder:
    (folder / "a").mkdir()
    (folder / "a" / "upload.png").write_bytes(b"x")
    with tempfile.NamedTemporaryFile(delete=False) as file:
        print(file.name, flush=True)
    signal.pause()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_temporary_files_are_private_and_go_with_the_program(number: int) -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", PRIVATE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert program.stdout is not None
    file = Path(program.stdout.readline().strip())
    assert stat.S_IMODE((file.parent / "a/upload.png").stat().st_mode) == 0o600
    assert {stat.S_IMODE(path.stat().st_mode) for path in (file.parent, file.parent / "a")} == {0o700}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    os.kill(program.pid, number)
    program.communicate(timeout=60)
    assert program.returncode in (128 + number, -number)
    assert not file.parent.exists()
