"""Streams of random numbers that depend on a seed and on what they are for."""

from __future__ import annotations

import random

import numpy as np
import torch

__all__ = ["mix_seed", "seed_all"]

_STREAMS = 2**32  # distinct streams of random numbers a seed is mixed into


def mix_seed(seed: int, *numbers: int) -> int:
    """A seed in [0, 2**32) that depends on all arguments, for streams that must not resemble one another."""
    # The count is there because SeedSequence takes [1] and [1, 0] for the same.
    return int(np.random.SeedSequence([seed % _STREAMS, len(numbers), *numbers]).generate_state(1)[0])


def seed_all(seed: int) -> None:
    """Seed Python, NumPy and PyTorch (all devices) in this process. `seed` is in [0, 2**32)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
