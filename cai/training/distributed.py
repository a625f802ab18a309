"""One training stage in several processes, started by torchrun or accelerate, and the device of each."""

import os
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


TIMEOUT = timedelta(days=1)
"""Of a collective: the others wait in one while the first process writes a checkpoint or hashes a model, which takes
long for a large one. A process that dies ends the others without it."""
DRIVER = Path("/proc/driver/nvidia/gpus")  # a folder for each GPU of the machine


def visible_gpus() -> list[str]:
    """The GPUs that a process here may use, by number or name, without loading torch."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name for part in chosen.split(",") if (name := part.strip()) and name != "-1"]
    return [str(number) for number in range(len(list(DRIVER.glob("*"))))]


def use_one_gpu() -> str | None:
    """Let this process, which no launcher started, see one GPU; what to say where there are more. Call before torch.

    With several in sight, transformers would train with DataParallel, whose batches are larger than the settings say,
    or split the model over them.
    """
    gpus = visible_gpus()
    if "RANK" in os.environ or len(gpus) < 2:
        return None
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus[0]
    return f"one of {len(gpus)} GPUs is used; launcher: auto trains with a process on each"


def device() -> str:
    """Where models live in this process: its own GPU, or the CPU."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def autocast() -> Any:
    """Forward passes in bfloat16 on a GPU."""
    import torch

    return torch.autocast("cuda", torch.bfloat16, enabled=torch.cuda.is_available())


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
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))  # or objects of all processes go through GPU 0
            dist.init_process_group("cpu:gloo,cuda:nccl", timeout=TIMEOUT)  # NCCL alone carries no tensor on the CPU
        else:
            dist.init_process_group("gloo", timeout=TIMEOUT)


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


def from_first(compute: Callable[[], Item]) -> Item:
    """What the first process computes, in all of them."""
    if process_count() == 1:
        return compute()
    import torch.distributed as dist

    computed: list[Any] = [compute() if is_first_process() else None]
    dist.broadcast_object_list(computed, src=0)
    return computed[0]  # type: ignore[no-any-return]


def answered_by_first(share: list[Item], answer: Callable[[list[Item]], list[Result]]) -> list[Result]:
    """What the first process answers to the items of all processes, which `answer` gets at once; each has its own."""
    if process_count() == 1:
        return answer(share)
    import torch.distributed as dist

    shares: list[Any] = [None] * process_count()
    dist.all_gather_object(shares, share)
    answers = from_first(lambda: answer([item for one in shares for item in one]))
    start = sum(map(len, shares[: int(os.environ["RANK"])]))
    return answers[start : start + len(share)]


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


def any_process(here: bool) -> bool:
    """Whether it is so in one of the processes."""
    import torch
    import torch.distributed as dist

    flag = torch.tensor(int(here))
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)


def joint(batches: Sequence[Item], filler: Item, sharded: bool) -> Iterator[tuple[Item, bool]]:
    """The batches, and of a `sharded` model as many of the filler as others have more; with each whether it counts.

    The passes of a sharded model are those of all processes: one that makes fewer leaves the others waiting.
    """
    import torch
    import torch.distributed as dist

    most = torch.tensor(len(batches))
    if sharded:
        dist.all_reduce(most, dist.ReduceOp.MAX)
    for number in range(int(most)):
        yield (batches[number], True) if number < len(batches) else (filler, False)
