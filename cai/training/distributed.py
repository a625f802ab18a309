"""One training stage in several processes, started by torchrun or accelerate. Imports torch: import this lazily."""

import os
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Item = TypeVar("Item")


def join() -> None:
    """Meet the other processes, if there are any."""
    if count() > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def leave() -> None:
    """Part from the others when all are done: if one aborted on its way out, torchrun would stop those that save."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def count() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", 1))


def own(items: list[Item]) -> list[Item]:
    """This process's share: every n-th."""
    return items[int(os.environ.get("RANK", 0)) :: count()]


def gathered(share: list[Item]) -> list[Item]:
    """The items of all processes in the order that `own` took them from."""
    if count() == 1:
        return share
    shares: list[Any] = [None] * count()
    dist.all_gather_object(shares, share)
    longest = max(len(s) for s in shares)
    return [s[i] for i in range(longest) for s in shares if i < len(s)]


def sum_gradients(parameters: list[Any]) -> None:
    """Add up each parameter's gradient over the processes, in place."""
    if count() > 1:
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)


def summed(x: Tensor) -> Tensor:
    """`x` added up over the processes."""
    if count() > 1:
        x = x.clone()
        dist.all_reduce(x)
    return x
