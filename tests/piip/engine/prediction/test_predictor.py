"""One predictor for several threads."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from .... import require

require.detectron2()

from piip.engine.prediction.predict import Predictor


def test_threads_keep_their_own_precision() -> None:
    """One enters while another is inside: each has its own state again when it leaves."""
    meeting = threading.Barrier(2, timeout=30)
    inside: list[bool] = []

    def model(inputs: Any) -> list[dict[str, torch.Tensor]]:
        inside.append(torch.is_autocast_enabled("cpu"))
        meeting.wait()
        return [{"out": torch.zeros(1)}]

    predictor = Predictor.__new__(Predictor)
    predictor.device, predictor.precision = "cpu", "float32"
    predictor.model = model  # type: ignore[assignment]
    predictor.prepare = lambda image, size: {"image": torch.zeros(1)}  # type: ignore[method-assign, assignment]

    def call(outside: bool) -> tuple[bool, bool]:
        with torch.autocast("cpu", torch.bfloat16, enabled=outside):
            meeting.wait()
            predictor.batch([np.zeros((1, 1, 3), np.uint8)])
            return outside, torch.is_autocast_enabled("cpu")

    with ThreadPoolExecutor(2) as pool:
        for outside, after in [*pool.map(call, [True, False])]:
            assert after == outside
    assert inside == [False, False]
