"""Processes of a run: those that torchrun started, or Detectron2's own."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import launch
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm

from ..command_line import UserError, is_for_users, user_error

__all__ = ["restarted", "start"]


def restarted() -> bool:
    """Whether torchrun has restarted this process after a failure: what ran before it left checkpoints."""
    return dist.is_torchelastic_launched() and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def _for_another_process(main: Callable[..., None], args: Any) -> None:
    """Run `main(args)`; the process that waits gets a text only, and has to know whom an error is for."""
    try:
        main(args)
    except Exception as error:
        if is_for_users(error):
            raise UserError(user_error(error).removeprefix("error: ")) from error
        raise


def start(main: Callable[..., None], args: Any) -> None:
    """Run `main(args)` in every process.

    Under torchrun this process is one of them. Otherwise Detectron2's launcher starts them as `--num-gpus`,
    `--num-machines`, `--machine-rank` and `--dist-url` say. Gloo connects them on CPUs, NCCL on GPUs.

    Raises:
        ValueError: these options are given under torchrun, which has its own, or there are fewer GPUs than
            processes.
    """
    if not dist.is_torchelastic_launched():
        several = args.num_gpus * args.num_machines > 1
        launch(
            _for_another_process if several else main,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(main, args) if several else (args,),
        )
        return
    if (args.num_gpus, args.num_machines, args.machine_rank) != (1, 1, 0):
        raise ValueError(
            "torchrun starts the processes: give --nnodes and --nproc-per-node to it, and no --num-gpus, "
            "--num-machines or --machine-rank to this program"
        )
    local_rank, processes = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    backend = "gloo"
    if torch.cuda.is_available():
        if processes > torch.cuda.device_count():
            raise ValueError(
                f"{processes} processes on {torch.cuda.device_count()} GPUs: lower --nproc-per-node"
            )
        torch.cuda.set_device(local_rank)
        backend = "nccl"
    dist.init_process_group(backend, timeout=DEFAULT_TIMEOUT)
    try:
        comm.create_local_process_group(processes)
        comm.synchronize()
        main(args)
    finally:
        dist.destroy_process_group()
