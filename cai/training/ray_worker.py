"""What the launcher `ray` runs on the nodes: beside each worker of Ray Train, the process that trains.

The process is as torchrun's: its rank and the first one's address are in its environment. It ends with the worker,
whose death closes its standard input, and its log and events travel through the worker to the launcher.
"""

import hashlib
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from cai import __version__
from cai.config.errors import CaiError
from cai.training.stage import StageSpec


@dataclass(frozen=True)
class Job:
    """What each worker gets: the arguments of Python, the launcher's folder and versions, and the way to reach it.

    The last argument is a stage.json, whose hash is `digest`; `messages` and `replies` are queues of Ray.
    """

    arguments: list[str]
    folder: Path
    versions: dict[str, str]
    digest: str
    messages: Any
    replies: Any

    @classmethod
    def here(cls, arguments: list[str], messages: Any, replies: Any) -> "Job":
        """The job as the launcher's node has it."""
        return cls(arguments, Path.cwd(), _versions(), _digest(Path(arguments[-1])), messages, replies)


def trainer(job: Job, scaling: Any, run: Any) -> Any:
    """Ray's TorchTrainer of a job, which leaves the process group to the processes that train."""
    from ray.train.backend import Backend
    from ray.train.torch import TorchConfig, TorchTrainer

    class Apart(Backend):  # type: ignore[misc]
        share_cuda_visible_devices = True  # LOCAL_RANK counts the GPUs of all processes of a node

    class ApartConfig(TorchConfig):  # type: ignore[misc]
        @property
        def backend_cls(self) -> type[Backend]:
            return Apart

        @property
        def train_func_context(self) -> Any:
            return nullcontext

    return TorchTrainer(
        work, train_loop_config={"job": job}, torch_config=ApartConfig(), scaling_config=scaling, run_config=run
    )


def work(config: dict[str, Any]) -> None:
    """Run the process of one worker to its end. Raises: RuntimeError, which names the node, when it fails."""
    from ray.train import get_context
    from ray.train.collective import broadcast_from_rank_zero

    job: Job = config["job"]
    try:
        check_node(job)
    except CaiError as error:
        job.messages.put(("event", json.dumps({"error": str(error)}) + "\n"))
        job.messages.put(("status", 2))
        raise RuntimeError(str(error)) from None
    context = get_context()
    rank = context.get_world_rank()
    address, port = broadcast_from_rank_zero(_free_port() if rank == 0 else None)
    environment = {
        "RANK": rank,
        "WORLD_SIZE": context.get_world_size(),
        "LOCAL_RANK": context.get_local_rank(),
        "LOCAL_WORLD_SIZE": context.get_local_world_size(),
        "GROUP_RANK": context.get_node_rank(),
        "MASTER_ADDR": address,
        "MASTER_PORT": port,
    }
    if not _has_gpu():
        environment["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves those of the node in sight
    status = _run(job, {name: str(value) for name, value in environment.items()})
    if status != 0:
        job.messages.put(("status", status))
        ended = f"status {status}" if status > 0 else signal.Signals(-status).name
        raise RuntimeError(f"process {rank} on node {socket.gethostname()} ended with {ended}")


def check_node(job: Job) -> None:
    """Raises: CaiError, which names the node, for another Python or cai, and for files that it does not see."""
    node, versions = f"launcher: ray: node {socket.gethostname()}", _versions()
    for name, version in job.versions.items():
        if versions[name] != version:
            raise CaiError(
                f"{node} has {name} {versions[name]}, the launcher's {version}; install the same on all nodes"
            )
    stage_file = job.folder / job.arguments[-1]
    for needed in (job.folder, stage_file.parent):
        if not needed.is_dir():
            raise CaiError(f"{node} has no folder {needed}; {_SHARED}")
    if not stage_file.exists() or _digest(stage_file) != job.digest:
        raise CaiError(f"{node} has another folder {stage_file.parent} than the launcher's node; {_SHARED}")
    spec = StageSpec.read(stage_file)
    for path in (spec.data, spec.model, spec.reward, spec.reference, *spec.other_rewards):
        if path is not None and not (job.folder / path).exists():
            raise CaiError(f"{node} has no {job.folder / path}; {_SHARED}")


_SHARED = "put it on storage that every node mounts at the same path"


def _versions() -> dict[str, str]:
    return {"python": ".".join(platform.python_version_tuple()[:2]), "cai": __version__}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _free_port() -> tuple[str, int]:
    """The address of this node, and a port on which nothing listens."""
    import ray

    address = ray.util.get_node_ip_address()
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.bind(("", 0))
        return address, probe.getsockname()[1]


def _has_gpu() -> bool:
    import ray

    return bool(ray.get_runtime_context().get_accelerator_ids().get("GPU"))


def _run(job: Job, environment: dict[str, str]) -> int:
    """Run the process, its output into the queue; returns its status, or minus the signal that ended it."""
    process = subprocess.Popen(
        [sys.executable, *job.arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=job.folder,
        env=os.environ | environment,
        encoding="utf-8",
        errors="replace",
    )
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    logging = threading.Thread(target=_copy_log, args=(process.stderr, job), daemon=True)
    logging.start()
    for line in process.stdout:  # events: the worker has its libraries print to standard error
        question = '"ask"' in line and "ask" in json.loads(line)
        job.messages.put(("ask" if question else "event", line))
        if question:
            process.stdin.write(job.replies.get())
            process.stdin.flush()
    status = process.wait()
    logging.join(timeout=5.0)  # a process that it left may hold the other end
    return status


def _copy_log(lines: IO[str], job: Job) -> None:
    for line in lines:
        job.messages.put(("log", line))
