"""Decisions that all ranks of a training take together."""

from __future__ import annotations

import logging
from datetime import timedelta

import torch
from detectron2.utils import comm

__all__ = ["any_rank", "barrier"]

_logger = logging.getLogger("detectron2.piip")


def any_rank(flag: bool) -> bool:
    """All-reduce (MAX) of one flag over gloo.

    Collective: every rank must call it. Does not synchronise the GPU.
    """
    if comm.get_world_size() == 1:
        return flag
    asked = torch.tensor(flag, dtype=torch.uint8)
    torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX, group=comm._get_global_gloo_group())
    return bool(asked)


def barrier(timeout: timedelta) -> None:
    """Wait for all ranks, at most that long; a rank that does not come is logged, not raised."""
    if comm.get_world_size() == 1:
        return
    try:
        torch.distributed.monitored_barrier(group=comm._get_global_gloo_group(), timeout=timeout)
    except RuntimeError as error:
        _logger.warning(f"not all processes reached the barrier: {str(error).splitlines()[0]}")
