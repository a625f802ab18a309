"""Killing a piece of work at every single operation on its files, each time in a process of its own."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

killed = 0  # so often in this process, for tests/faults/conftest.py
TORTURE = bool(os.environ.get("CAI_TORTURE"))
KILLED = 9  # the exit status of a process that was killed at its point
OPERATIONS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "sqlite3.connect"}
WRITING = os.O_WRONLY | os.O_RDWR


def kill_points(
    work: Callable[[], object], folder: Path, prepare: Callable[[], object], every: int = 1
) -> Iterator[int]:
    """Every number of operations on files below `folder` after which `work` was killed, until it is done.

    With `every` above 1 only each of so many; under `make torture` always all. A file that is opened for writing is a point twice: before it is created, and once it is empty.
    """
    global killed
    for point in range(1, 10_000, 1 if TORTURE else every):
        prepare()
        status = status_of(work, folder, point)
        if status == 0:
            return
        assert status == KILLED, f"work failed with status {status} before operation {point}"
        killed += 1
        yield point


def status_of(work: Callable[[], object], folder: Path, point: int) -> int:
    """The exit status of a forked process that does `work` and dies at operation `point`."""
    process = os.fork()
    if process == 0:
        try:
            sys.addaudithook(_killer(str(folder), point))
            work()
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _killer(folder: str, point: int) -> Callable[[str, tuple[Any, ...]], None]:
    count, inside = 0, False

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count, inside
        if (
            event not in OPERATIONS
            or inside
            or not any(folder in os.fsdecode(arg) for arg in args[:2] if _is_path(arg))
        ):
            return
        writes = event == "open" and args[2] & WRITING
        if event == "open" and not writes:
            return
        count += 1
        if count == point:
            os._exit(KILLED)
        if writes:
            count += 1
            if count == point:
                inside = True
                os.open(args[0], args[2], 0o666)
                os._exit(KILLED)

    return hook


def _is_path(arg: Any) -> bool:
    return isinstance(arg, str | bytes | os.PathLike)
