"""The page in a real browser: upload, click, result, errors; and nothing asked of another machine."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ... import require

require.detectron2()
CHROMIUM = require.browser()
pytest.importorskip("gradio", reason="needs Gradio (make setup installs it)")

from piip.engine.checkpoints.checkpoint import Checkpointer
from piip.engine.config import load_config
from piip.engine.model import build_model
from piip.quick.shapes import write_split
from piip.serve.analysis import Model
from piip.serve.page import build_page, drawn_examples, serve
from piip.serve.upload import Limits

from ..tiny_config import QUICK_CONFIG

if TYPE_CHECKING:
    from playwright.sync_api import Page

FLAGS = [
    "--no-sandbox",  # Chromium refuses to start as root with it
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 90_000  # milliseconds, on a machine that does other things too


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page of an untrained model, as the tool serves it."""
    folder = tmp_path_factory.mktemp("page")
    Checkpointer(build_model(load_config(str(QUICK_CONFIG))), str(folder)).save("model")
    model = Model(str(QUICK_CONFIG), str(folder / "model.pth"))
    limits = Limits(megapixels=0.05)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    page = build_page([model], limits, drawn_examples(folder))
    yield serve(page, limits, port=port, wait=False)
    page.close()


@pytest.fixture(scope="module")
def page(address: str) -> Iterator[Page]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 1400})
        page.set_default_timeout(PATIENCE)
        elsewhere: list[str] = []
        page.on(
            "requestfinished",
            lambda request: (
                None if request.url.startswith((address, "data:", "blob:")) else elsewhere.append(request.url)
            ),
        )
        page.goto(address)
        page.get_by_role("button", name="Analyse").wait_for()
        yield page
        browser.close()
    assert elsewhere == []


def test_upload_click_result_and_errors(page: Page, tmp_path: Path) -> None:
    write_split(tmp_path, "val", 1, image_size=128, seed=0)
    (image,) = (tmp_path / "val").iterdir()
    button = page.get_by_role("button", name="Analyse")

    button.click()
    page.get_by_text("there is no image yet").wait_for()

    upload = page.locator("input[type=file]").first
    upload.set_input_files(image)
    page.locator('[data-testid="image"] img, .image-frame img').first.wait_for()
    button.click()
    for text in ("interactions", "heads and results", "branch 3 (", "merged ("):
        page.get_by_text(text).first.wait_for()
    assert page.get_by_label("found").locator("img").or_(page.locator("img")).count() >= 5  # picture, maps

    write_split(tmp_path / "large", "val", 1, image_size=256, seed=0)
    (large,) = (tmp_path / "large/val").iterdir()
    page.reload()
    page.locator("input[type=file]").first.set_input_files(large)
    page.locator('[data-testid="image"] img, .image-frame img').first.wait_for()
    button.click()
    page.get_by_text("0.1 megapixels: at most 0.05 are taken").wait_for()

    (tmp_path / "notes.txt").write_text("no image")
    page.reload()
    page.locator("input[type=file]").first.set_input_files(tmp_path / "notes.txt")
    page.get_by_text("nvalid file type").first.wait_for()
