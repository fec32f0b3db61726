"""What holds for every test."""

from __future__ import annotations

import pytest
import torch


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Random weights and inputs are the same whatever ran before, in this process or in another.

    A hook, not a fixture: those of a module that build models come after it, too.
    """
    torch.manual_seed(0)
