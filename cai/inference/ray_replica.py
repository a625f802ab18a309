"""What runs on a node of a Ray cluster: one engine in a process of its own, and what is installed there.

The driver's side is cai/inference/ray_engine.py. Nothing of a replica is on disk: the cache is the driver's.
"""

import asyncio
import os
import platform
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from cai.config.errors import CaiError, RequestRefused
from cai.data.records import Message
from cai.inference.engine import Choose, Completion, Engine, EngineConfig, Generate, UnusableAnswer
from cai.inference.models import LOADED
from cai.inference.vllm_settings import on_cpu, vllm_build
from cai.stats.formatting import counted

Request = Generate | Choose
Outcome = Completion | list[float] | RequestRefused | CaiError
OpenReplica = Callable[[Path, str, EngineConfig], Engine]
DECIDING = ("python", "cai", "vllm")  # versions that all nodes must share; of others a difference is a warning
WARM_UP = Generate([Message(role="user", content="Hi")], 1, 0.0, 0)


@dataclass(frozen=True)
class Node:
    """Where a replica runs: its host and process, versions of packages, and the model's files with their sizes.

    `files` is None where there is no such folder; `ray_id` is empty for the driver.
    """

    host: str
    pid: int
    versions: Mapping[str, str]
    files: Mapping[str, int] | None
    ray_id: str = ""


def this_node(folder: Path) -> Node:
    """The node on which this process runs, and the model folder as it is seen there."""
    from cai import __version__

    build = vllm_build()
    versions = {"python": ".".join(platform.python_version_tuple()[:2]), "cai": __version__}
    versions["vllm"] = f"{build} {version(build)}" if build != "none" else "not installed"
    for package in ("torch", "transformers"):
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    files = None
    if folder.is_dir():
        paths = (path for path in sorted(folder.rglob("*")) if path.suffix in LOADED and path.is_file())
        files = {str(path.relative_to(folder)): path.stat().st_size for path in paths}
    return Node(socket.gethostname(), os.getpid(), versions, files)


def check_node(node: Node, driver: Node, folder: Path) -> list[str]:
    """Compare a replica's node with the driver's.

    Returns: warnings about packages whose versions differ without harm.
    Raises: CaiError for another Python, cai or vLLM, and for a model folder that is missing or differs.
    """
    for package in DECIDING:
        if node.versions.get(package) != driver.versions[package]:
            raise CaiError(
                f"engine.ray: node {node.host} has {package} {node.versions.get(package)}, this machine "
                f"{driver.versions[package]}; install the same on all nodes"
            )
    if node.files is None:
        raise CaiError(
            f"engine.ray: node {node.host} has no folder {folder}; put the model on storage that every node mounts at "
            "the same path, or copy it there"
        )
    if node.files != driver.files:
        sizes = driver.files or {}
        name = next(name for name in sorted({*node.files, *sizes}) if node.files.get(name) != sizes.get(name))
        there, here = (_size(files.get(name)) for files in (node.files, sizes))
        raise CaiError(
            f"engine.ray: node {node.host} has another model: {folder / name} {there} there, {here} on this machine"
        )
    return [
        f"node {node.host} has {package} {node.versions.get(package)}, this machine {here}"
        for package, here in driver.versions.items()
        if node.versions.get(package) != here
    ]


def end_process(pid: int) -> None:
    """Kill a process of this node."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _size(size: int | None) -> str:
    return "is missing" if size is None else f"has {counted(size, 'bytes')}"


class Replica:
    """An engine as a Ray actor: takes numbered requests in batches, and gives outcomes as soon as there are any.

    A batch has no end of its own: a short answer never waits for the longest of its batch.
    """

    def __init__(
        self, model: Path, fingerprint: str, settings: EngineConfig, open_engine: OpenReplica, threads: int
    ) -> None:
        self._opened = model, fingerprint, settings
        self._open_engine, self._threads = open_engine, threads
        self._engine: Engine | None = None
        self._running: dict[int, asyncio.Task[None]] = {}
        self._outcomes: list[tuple[int, Outcome]] = []
        self._finished = asyncio.Event()

    async def describe(self) -> Node:
        """Where this is; loads nothing."""
        import ray

        node = await asyncio.to_thread(this_node, self._opened[0])
        return replace(node, ray_id=ray.get_runtime_context().get_node_id())

    async def load(self) -> CaiError | None:
        """Load the model, up to its first token; the error if it cannot be loaded."""
        if on_cpu():
            os.environ["OMP_NUM_THREADS"] = str(self._threads)
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # all replicas would bind to the same cores
        if self._engine is None:
            self._engine = self._open_engine(*self._opened)
        outcome = await self._outcome(WARM_UP)
        return outcome if isinstance(outcome, CaiError) else None

    async def ask(self, batch: Sequence[tuple[int, Request]], cancelled: Sequence[int]) -> None:
        """Begin to answer the requests of a batch; those of earlier ones that nobody waits for any more end."""
        for number in cancelled:
            if (task := self._running.pop(number, None)) is not None:
                task.cancel()
        for number, request in batch:
            if number not in self._running:  # it is when the driver did not hear that it arrived
                self._running[number] = asyncio.ensure_future(self._answer(number, request))

    async def answers(self, seconds: float) -> list[tuple[int, Outcome]]:
        """What is finished since the last call, as soon as there is any; empty after so many seconds."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._finished.wait(), seconds)
        self._finished.clear()
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    async def close(self) -> None:
        """Free the model."""
        if self._engine is not None:
            await self._engine.close()

    async def _answer(self, number: int, request: Request) -> None:
        outcome = await self._outcome(request)
        self._running.pop(number, None)
        self._outcomes.append((number, outcome))
        self._finished.set()

    async def _outcome(self, request: Request) -> Outcome:
        assert self._engine is not None
        try:
            if isinstance(request, Choose):
                return list(await self._engine.choose(request))
            return await self._engine.generate(request)
        except (RequestRefused, CaiError) as error:
            return error
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is None or task.cancelling():
                raise
            return UnusableAnswer("the engine cancelled the request")  # and nobody else did
        except Exception as error:  # which may be of a class that the driver cannot read
            return CaiError(f"unexpected {type(error).__name__}: {error}")
