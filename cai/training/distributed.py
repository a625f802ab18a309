"""One training stage in several processes, started by torchrun or accelerate, and the device of each."""

import os
from typing import Any, TypeVar

Item = TypeVar("Item")


def device() -> str:
    """Where models live in this process: its own GPU, or the CPU."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def is_first_process() -> bool:
    """Whether this process writes the files; under torchrun the others only compute."""
    return int(os.environ.get("RANK", 0)) == 0


def process_count() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", 1))


def join() -> None:
    """Open the process group, if there are several processes."""
    import torch
    import torch.distributed as dist

    if process_count() > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def leave() -> None:
    """Close the process group once all are done: a process that aborts makes torchrun stop those that still save."""
    if process_count() == 1:
        return
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def shard(items: list[Item]) -> list[Item]:
    """This process's share: every n-th item."""
    return items[int(os.environ.get("RANK", 0)) :: process_count()]


def gather(share: list[Item]) -> list[Item]:
    """The items of all processes, in the order that `shard` took them from."""
    if process_count() == 1:
        return share
    import torch.distributed as dist

    shares: list[Any] = [None] * process_count()
    dist.all_gather_object(shares, share)
    longest = max(len(s) for s in shares)
    return [s[i] for i in range(longest) for s in shares if i < len(s)]


def sum_gradients(parameters: list[Any]) -> None:
    """Sum each parameter's gradient over the processes, in place."""
    if process_count() == 1:
        return
    import torch
    import torch.distributed as dist

    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad)


def sum_over_processes(x: Any) -> Any:
    """The tensor `x` summed over the processes; `x` is left as it is."""
    if process_count() == 1:
        return x
    import torch.distributed as dist

    total = x.clone()
    dist.all_reduce(total)
    return total
