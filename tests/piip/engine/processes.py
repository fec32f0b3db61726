"""Runs a function in several processes that gloo connects, without each of them importing everything anew."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from detectron2.utils import comm

PATIENCE = timedelta(seconds=600)  # a busy machine

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["piip.engine.train", "piip.quick.shapes", "torch.distributed.checkpoint"])


def _process(
    rank: int, world_size: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size, timeout=PATIENCE
    )
    comm.create_local_process_group(world_size)
    torch.save(function(*arguments), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def in_processes(world_size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `function(*arguments)` returns in each process: tensors and plain containers."""
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            _context.Process(target=_process, args=(rank, world_size, folder, function, arguments))
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(PATIENCE.total_seconds())
            process.kill()
        assert [process.exitcode for process in processes] == [0] * world_size
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(world_size)]


def environment(folder: Path) -> None:
    """Where the processes find the drawn shapes."""
    os.environ["DETECTRON2_DATASETS"] = str(folder / "datasets")
