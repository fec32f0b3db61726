"""What tests need that may be absent."""

from __future__ import annotations

import importlib.util
import os

import pytest


def detectron2() -> None:
    """Skip the calling test (or module) where Detectron2 is not installed; fail where it must be (in CI)."""
    if importlib.util.find_spec("detectron2") is None:
        if os.environ.get("PIIP_REQUIRE_DETECTRON2") == "1":
            pytest.fail(
                "Detectron2 is not installed, but PIIP_REQUIRE_DETECTRON2=1 says it must be", pytrace=False
            )
        pytest.skip("needs Detectron2 (make setup installs it)", allow_module_level=True)
