"""What tests need that may be absent."""

from __future__ import annotations

import importlib.util
import os
import shutil

import pytest


def detectron2() -> None:
    """Skip the calling test (or module) where Detectron2 is not installed; fail where it must be (in CI)."""
    if importlib.util.find_spec("detectron2") is None:
        if os.environ.get("PIIP_REQUIRE_DETECTRON2") == "1":
            pytest.fail(
                "Detectron2 is not installed, but PIIP_REQUIRE_DETECTRON2=1 says it must be", pytrace=False
            )
        pytest.skip("needs Detectron2 (make setup installs it)", allow_module_level=True)


BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def browser() -> str:
    """The path of a Chromium; skips the calling test where there is none, fails where one must be (in CI)."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    missing = None if found else f"no browser ({', '.join(BROWSERS)}): make browser installs one"
    if importlib.util.find_spec("playwright") is None:
        missing = "needs Playwright (make setup installs it)"
    if found and not missing:
        return found
    if os.environ.get("PIIP_REQUIRE_BROWSER") == "1":
        pytest.fail(f"{missing}, and PIIP_REQUIRE_BROWSER=1 says it must be there", pytrace=False)
    pytest.skip(f"{missing}", allow_module_level=True)
