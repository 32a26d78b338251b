"""One process or many: rank, device and communication between ranks.

torchrun (or the exports in docs/CLUSTER.md) sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. Without
them the run has one process and nothing here communicates.
"""

import os
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from chexzero.common.errors import UserError

#: How long a rank waits for another. Long, because rank 0 validates and writes while the others wait. If a rank dies,
#: torchrun and srun end the others at once.
TIMEOUT = timedelta(hours=1)
GRACE = 0.5  # seconds


def start() -> torch.device:
    """Join the other ranks, if there are any, and return this rank's device."""
    size, local_rank = _number("WORLD_SIZE", 1), _number("LOCAL_RANK", 0)
    if _number("SLURM_STEP_NUM_TASKS", 1) > 1 and not os.environ.get("WORLD_SIZE", "").strip():
        raise UserError(
            "srun started several tasks, but WORLD_SIZE is not set, so that they cannot find each other; "
            "export RANK, LOCAL_RANK and WORLD_SIZE as docs/slurm/*.sbatch do, or WORLD_SIZE=1 for "
            "runs of their own"
        )
    if size > 1:
        _check_companions(size)
    use_cuda = torch.cuda.is_available()
    if use_cuda and local_rank >= torch.cuda.device_count():
        raise UserError(
            f"local rank {local_rank} has no GPU of its own (this machine has "
            f"{torch.cuda.device_count()}); start as many processes on a node as it has GPUs"
        )
    device = torch.device("cuda", local_rank) if use_cuda else torch.device("cpu")
    if use_cuda:
        torch.cuda.set_device(device)
    if size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if use_cuda else "gloo", timeout=TIMEOUT)
    return device


def _number(name: str, default: int) -> int:
    """Read an environment variable that is a count or an index from 0; empty counts as not set."""
    text = os.environ.get(name, "").strip()
    if text and not text.isdecimal():
        raise UserError(
            f"the environment variable {name} is {text!r}, not a whole number; unset it for one process, or start the "
            "ranks with torchrun"
        )
    return int(text or default)


def _check_companions(size: int) -> None:
    """Raise `UserError` unless the other variables that torch needs for a WORLD_SIZE above 1 are set."""
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name, "").strip()]
    if missing:
        raise UserError(
            f"WORLD_SIZE is {size}, but {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set, so that "
            f"this process would wait for others for ever; start the ranks with torchrun, or unset WORLD_SIZE"
        )
    if (rank_here := _number("RANK", 0)) >= size:
        raise UserError(f"RANK is {rank_here} where WORLD_SIZE is {size}; ranks are counted from 0, correct it")


def finish() -> None:
    """Leave the group of ranks."""
    if dist.is_initialized():
        # gloo's worker threads need the GIL to free their send buffers; exiting at once can deadlock.
        time.sleep(GRACE)
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes the files: rank 0."""
    return rank() == 0


def is_first_on_node() -> bool:
    """Whether this process does the work that each machine needs once."""
    return _number("LOCAL_RANK", 0) == 0


def wait_for_main() -> None:
    """Wait until every rank, rank 0 included, has reached this call."""
    if dist.is_initialized():
        dist.barrier()


def mean(values: torch.Tensor) -> torch.Tensor:
    """Mean of `values` over the ranks, computed on their device without waiting for it."""
    if dist.is_initialized():
        dist.all_reduce(values)
        values /= world_size()
    return values


def gather(values: torch.Tensor) -> torch.Tensor:
    """`values` (b, ...) of every rank in the order of ranks: (b x ranks, ...). No gradient flows through."""
    if not dist.is_initialized():
        return values
    parts = [torch.empty_like(values) for _ in range(world_size())]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)


def gather_objects(value: object) -> list:
    """`value` of every rank, in the order of ranks, on every rank."""
    if not dist.is_initialized():
        return [value]
    values: list = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def from_main(value: Any) -> Any:
    """Rank 0's `value` on every rank."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]
