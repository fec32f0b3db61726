"""Prediction runs to its end whatever single inputs do."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .... import require

require.detectron2()

from piip.engine.prediction.predict import predict
from piip.images import Image, read_image, write_image


class Brightness:
    """A model that fails on lines of pixels, and runs out of memory on high images."""

    def batch(self, images: Sequence[Image], sizes: Any = None) -> list[dict[str, Any]]:
        for image in images:
            if min(image.shape[:2]) == 1:
                raise ValueError("no line of pixels, please")
            if image.shape[0] > 50:
                raise MemoryError("not enough memory")
        return [{"brightness": float(image.mean())} for image in images]


class Renderer:
    def output_size(self, height: int, width: int) -> tuple[int, int]:
        return height, width

    def records(self, output: Any, image_id: int) -> list[dict[str, Any]]:
        return [{"image_id": image_id, **output}]

    def draw(self, image: Image, output: Any) -> Image:
        if image.shape[1] == 33:
            raise AssertionError("no room for a label")
        return 255 - image

    def save(self, output: Any, picture: Path, size: tuple[int, int]) -> None:
        """Nothing."""


@pytest.mark.parametrize("batch", [1, 3])
def test_one_image_never_ends_a_run(batch: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each that fails is skipped with a reason, in its batch too, and without a record."""
    for name, size in {"a": (20, 20), "b": (1, 40), "c": (60, 20), "d": (20, 33), "e": (30, 20)}.items():
        write_image(tmp_path / f"{name}.png", np.full((*size, 3), 100, np.uint8))
    os.mkfifo(tmp_path / "f.png")
    report = predict(Brightness(), Renderer(), [str(tmp_path)], tmp_path / "out", batch=batch)
    assert report.drawn == 2
    assert {path.name: reason for path, reason in report.skipped.items()} == {
        "b.png": "40x1 px, the model fails on it (ValueError: no line of pixels, please)",
        "c.png": "20x60 px, the model fails on it (MemoryError: not enough memory)",
        "d.png": "33x20 px, its result cannot be drawn (AssertionError: no room for a label)",
        "f.png": "it is a named pipe: expected a regular file",
    }
    records = json.loads((tmp_path / "out/predictions.json").read_text())
    assert [Path(record["file_name"]).name for record in records] == ["a.png", "e.png"]
    assert capsys.readouterr().out.count("skipped ") == 4


def test_names_that_are_not_utf8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/bl\xe5"))
    folder.mkdir()
    write_image(folder / os.fsdecode(b"\xff.png"), np.full((20, 20, 3), 100, np.uint8))
    (folder / os.fsdecode(b"\xfe.jpg")).write_bytes(b"no image")
    report = predict(Brightness(), Renderer(), [str(folder)], folder / "out")
    assert (report.drawn, len(report.skipped)) == (1, 1)
    assert read_image(folder / "out" / os.fsdecode(b"\xff.png")).max() == 155
    (record,) = json.loads((folder / "out/predictions.json").read_text())
    assert record["file_name"] == str(folder / os.fsdecode(b"\xff.png"))
    assert r"bl\xe5/\xfe.jpg: it is not an image" in capsys.readouterr().out
