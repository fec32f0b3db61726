"""Decisions that all processes of a training must take alike."""

from __future__ import annotations

import logging
from datetime import timedelta

import torch
from detectron2.utils import comm

__all__ = ["anywhere", "meet"]

_logger = logging.getLogger("detectron2.piip")


def anywhere(flag: bool) -> bool:
    """Whether it is true in any process; all must ask. It takes a byte on the CPUs, no wait for a GPU."""
    if comm.get_world_size() == 1:
        return flag
    asked = torch.tensor(flag, dtype=torch.uint8)
    torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX, group=comm._get_global_gloo_group())
    return bool(asked)


def meet(patience: timedelta) -> None:
    """Wait until all processes have come here, but no longer: some may be where nothing calls them back."""
    if comm.get_world_size() == 1:
        return
    try:
        torch.distributed.monitored_barrier(group=comm._get_global_gloo_group(), timeout=patience)
    except RuntimeError as error:
        _logger.warning(f"not all processes came to the end: {str(error).splitlines()[0]}")
