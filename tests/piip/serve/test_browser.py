"""The page in a real browser: upload, click, result, errors; and nothing asked of another machine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ... import require

require.detectron2()
CHROMIUM = require.browser()
pytest.importorskip("gradio", reason="needs Gradio (make setup installs it)")

from PIL import Image as PillowImage

from piip.quick.shapes import write_split
from piip.serve.upload import Limits

from .serving import served

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

FLAGS = [
    "--no-sandbox",  # Chromium refuses to start as root with it
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SHOWN = '[data-testid="image"] img, .image-frame img'
PATIENCE = 90_000  # milliseconds, on a machine that does other things too


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page of an untrained model, as the tool serves it."""
    with served(tmp_path_factory.mktemp("page"), Limits(megabytes=0.1, megapixels=0.05)) as (address, _, _):
        yield address


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

    page.get_by_role("heading", name=re.compile(r"^page\d+\Wmodel$")).wait_for()
    page.get_by_text("6 classes: disc, square").wait_for()
    button.click()
    page.get_by_text("There is no image yet").wait_for()

    def visible(text: str) -> Locator:
        return page.get_by_text(text).locator("visible=true")  # tables hold hidden copies of their cells

    def take(path: Path) -> None:
        page.reload()
        page.locator("input[type=file]").first.set_input_files(path)

    upload = page.locator("input[type=file]").first
    upload.set_input_files(image)
    page.locator(SHOWN).first.wait_for()
    button.click()
    page.locator('img[src$="/image.png"]').first.wait_for()
    for text in ("interactions", "branch 3 ("):
        assert not visible(text).count()  # folded away
    page.get_by_text("Technical details").click()
    for text in ("interactions", "heads and post-processing", "branch 3 (", "merged ("):
        visible(text).first.wait_for()
    assert page.locator("img").count() >= 5  # picture, maps

    write_split(tmp_path / "large", "val", 1, image_size=256, seed=0)
    (large,) = (tmp_path / "large/val").iterdir()
    take(large)
    page.get_by_text("exceed the maximum allowed size").first.wait_for()

    PillowImage.new("1", (256, 256)).save(tmp_path / "pixels.png")
    take(tmp_path / "pixels.png")
    page.locator(SHOWN).first.wait_for()
    button.click()
    page.get_by_text("expected at most 0.05 megapixels").wait_for()

    (tmp_path / "notes.txt").write_text("no image")
    take(tmp_path / "notes.txt")
    page.get_by_text("nvalid file type").first.wait_for()
