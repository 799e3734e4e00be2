"""Several processes of one run, as torchrun starts them: who this one is, and what they tell each other.

torchrun --nproc-per-node=2 study.py study=images hydra.run.dir=FOLDER

Without torchrun a process is alone, and every function here returns what it was given.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # whether a command is refused is known before torch is imported
    import torch
    from torch import Tensor, nn


class Ranks(NamedTuple):
    """This process among those of its run.

    Attributes:
        rank: its number, from 0. Rank 0 alone writes files.
        processes: of the run.
        local: its number on this machine, and that of its GPU.
    """

    rank: int = 0
    processes: int = 1
    local: int = 0

    @property
    def writes(self) -> bool:
        return self.rank == 0


def here() -> Ranks:
    """What torchrun says in the environment."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return Ranks()
    return Ranks(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """Within it the processes of the run are connected: by NCCL on GPUs, else by gloo."""
    import torch
    import torch.distributed as dist

    ranks = here()
    if ranks.processes == 1:
        yield ranks
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield ranks
    finally:
        dist.destroy_process_group()


def device_of(name: str) -> torch.device:
    """`auto`, `cpu` or `cuda`; each process of a machine has a GPU of its own.

    Raises:
        ValueError: there is no such GPU.
    """
    import torch

    from nap_rl import machine

    device, ranks = machine.pick_device(name), here()
    if device.type != "cuda" or ranks.processes == 1:
        return device
    if ranks.local >= torch.cuda.device_count():
        raise ValueError(
            f"torchrun started process {ranks.local + 1} of this machine, which has {torch.cuda.device_count()} GPUs: "
            "start one process for each GPU, or take device=cpu"
        )
    return torch.device("cuda", ranks.local)


def total(values: Tensor) -> Tensor:
    """The sum over all processes; `values` is written over."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def gathered(value: Any) -> list[Any]:
    """`value` of each process, in the order of ranks."""
    import torch.distributed as dist

    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def share_buffers(module: nn.Module) -> None:
    """Give every process the buffers of rank 0, such as the running means of BatchNorm."""
    import torch.distributed as dist

    if dist.is_initialized():
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)
