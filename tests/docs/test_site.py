"""The documentation site builds without a warning, from these files alone."""

from __future__ import annotations

import html.parser
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("material", reason="needs mkdocs-material (make setup installs it)")
pytest.importorskip("mkdocstrings", reason="needs mkdocstrings (make setup installs it)")

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    environment = {
        **os.environ,
        "NO_MKDOCS_2_WARNING": "1",
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY / "projects/PIIP"), str(REPOSITORY)]),
    }
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(folder)],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    assert "WARNING" not in built.stderr  # --strict is lost on --quiet, say
    return folder


class _Loaded(html.parser.HTMLParser):
    """Addresses that a page loads by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in ("script", "img", "iframe", "source"):
            self.addresses.append(values.get("src") or "")
        if tag == "link" and values.get("rel") != "canonical":
            self.addresses.append(values.get("href") or "")


def test_the_site_is_strict_and_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) >= 20
    for page in pages:
        parser = _Loaded()
        parser.feed(page.read_text(encoding="utf-8"))
        assert not [address for address in parser.addresses if re.match(r"(https?:)?//", address)], page
    zoo = (site / "zoo.html").read_text(encoding="utf-8")
    rows = zoo.partition('<table id="zoo">')[2].partition("</table>")[0].count("<tr ")
    assert rows >= 33  # 21 released detectors, 12 segmentors
    assert "<code>mask_rcnn_piip_tsb_1120_896_448_1x</code>" in zoo
    reference = (site / "reference/network.html").read_text(encoding="utf-8")
    assert "num_interactions" in reference and "Several models look at one image" in reference
    assert not list(site.rglob("*.py"))
