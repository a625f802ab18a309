"""This process's connection to Ray, and what a replica asks of a cluster."""

import asyncio
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any, ClassVar, TypeVar

from cai.config.errors import CaiError
from cai.inference.engine import EngineConfig, RayConfig
from cai.inference.vllm_settings import gpus_needed, on_cpu, set_environment
from cai.stats.formatting import counted

CONNECT_SECONDS = 5.0  # for the head node's port to open
OBJECT_STORE_BYTES = 256 * 2**20  # of a local Ray: requests and answers pass through it, no data
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the default of later versions; without it Ray prints a notice
    "RAY_process_group_cleanup_enabled": "1",  # vLLM's processes on GPUs end with the replica that started them
}
"""Of a Ray that is started here."""
TOKEN_HINT = (
    "; if the cluster asks for a token, share the head's ~/.ray/auth_token, or set RAY_AUTH_MODE and RAY_AUTH_TOKEN"
)
Result = TypeVar("Result")


class Cluster:
    """Ray as all engines of this process share it: connected by the first, left by the last.

    All calls that block run in one thread. It lives as long as a Ray that was started here, whose processes end with
    the thread that started them.
    """

    _shared: ClassVar["Cluster | None"] = None
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, address: str | None) -> None:
        self.address = address
        self._engines = 0
        self._connected = False  # by this class, not by the program that uses it
        self._thread = ThreadPoolExecutor(1, "ray")

    @classmethod
    def join(cls, address: str | None) -> "Cluster":
        """The connection, which `connect` makes if it is not made. Raises: CaiError for a second address."""
        with cls._lock:
            if cls._shared is None:
                cls._shared = cls(address)
            elif cls._shared.address != address:
                raise CaiError(
                    f"engine.ray.address: {address} beside {cls._shared.address}: all engines of a command share one "
                    "cluster"
                )
            cls._shared._engines += 1
            return cls._shared

    async def run(self, function: Callable[[], Result]) -> Result:
        """What a blocking function returns, in the thread of Ray."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    async def connect(self) -> None:
        """Connect to Ray, or start it here. Raises: CaiError when there is none, or another version."""
        await self.run(self._connect)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))  # Ray's own prints a stack first

    async def leave(self) -> None:
        """Undo `join`; the last one disconnects, which ends a Ray that was started here."""
        with self._lock:
            self._engines -= 1
            if self._engines:
                return
            Cluster._shared = None
        await self.run(self._disconnect)
        self._thread.shutdown(wait=False)

    def _connect(self) -> None:
        set_environment()
        self._connected = connect(self.address, "engine.ray.address", {})

    def _disconnect(self) -> None:
        if self._connected:
            import ray

            ray.shutdown()


def connect(address: str | None, setting: str, local: dict[str, Any]) -> bool:
    """Connect this process to Ray, or start it here with the arguments `local`; False if it is connected already.

    Raises: CaiError, which names the setting of the address, where there is no Ray, or another version.
    """
    check_installed()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    if address not in (None, "auto"):
        _check_port(str(address), setting)
    if ray.is_initialized():
        return False
    local = {} if address else {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES, **local}
    try:
        ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **local)
    except Exception as error:  # of several libraries
        where = f"{setting}: {address}" if address else "Ray cannot be started on this machine"
        hint = "" if address is None or os.environ.get("RAY_AUTH_MODE") else TOKEN_HINT
        raise CaiError(f"{where}: {' '.join(str(error).split())[:600]}{hint}") from None
    return True


def check_installed() -> None:
    """Raises: CaiError without Ray."""
    if find_spec("ray") is None:
        raise CaiError("Ray is not installed: install it with `pip install 'cai-rlaif[ray]'`")


def _check_port(address: str, setting: str) -> None:
    """Raises: CaiError when nothing listens; Ray itself would try for a minute and more."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CaiError(
            f"{setting}: {address} cannot be reached: {reason}; expected the head node of a Ray cluster "
            "(`ray start --head` prints its address), or auto"
        ) from None


def needed(settings: EngineConfig) -> dict[str, float]:
    """What Ray reserves for one replica, by its names of resources.

    The cores of this machine are divided, not reserved: engines of several models share them.
    """
    ray = settings.ray or RayConfig()
    gpus = ray.gpus_per_replica
    if gpus is None:
        gpus = 0 if on_cpu() else gpus_needed(settings)
    cpus = ray.cpus_per_replica
    if cpus is None:
        cpus = 1 if gpus or ray.address else 0
    return {"CPU": cpus, "GPU": gpus}


def threads(settings: EngineConfig) -> int:
    """The threads of a replica that computes on a CPU."""
    ray = settings.ray or RayConfig()
    cores = len(os.sched_getaffinity(0)) / ray.replicas if ray.address is None else 1
    return max(1, int(cores if ray.cpus_per_replica is None else ray.cpus_per_replica))


def check_room(settings: EngineConfig) -> None:
    """Raises: CaiError when a Ray that was started here has not what the replicas ask; a cluster may still grow."""
    import ray

    if settings.ray is None or settings.ray.address is not None:
        return
    wanted, total = needed(settings), ray.cluster_resources()
    for resource, amount in wanted.items():
        if amount * settings.ray.replicas > total.get(resource, 0.0):
            raise CaiError(
                f"engine.ray.replicas: {counted(settings.ray.replicas, 'replicas')} with {amounts(wanted)} each, but "
                f"this machine has {amounts(total)}"
            )


def amounts(resources: Mapping[str, float]) -> str:
    """Resources in words, such as `16 CPU and 2 GPU`."""
    return " and ".join(f"{resources.get(name, 0.0):g} {name}" for name in ("CPU", "GPU"))


def pending_text(settings: EngineConfig, pending: int) -> str:
    """What so many replicas wait for, and what the cluster has. Blocks for the cluster's answer."""
    import ray

    replicas = settings.ray.replicas if settings.ray else 1
    return (
        f"{pending} of {counted(replicas, 'replicas')} wait for {amounts(needed(settings))} each; the cluster has "
        f"{amounts(ray.cluster_resources())}, of which {amounts(ray.available_resources())} are free"
    )
