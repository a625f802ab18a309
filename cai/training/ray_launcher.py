"""The launcher `ray --workers 2`: a stage's worker in each worker of Ray Train, on one machine or a cluster.

`python -m cai.training.ray_launcher --workers 2 -- -m cai.training.worker STAGE.json` starts or joins Ray, has Ray
Train reserve what the workers need, and runs `python -m cai.training.worker STAGE.json` beside each of them
(`cai/training/ray_worker.py`). Events of the first process reach standard output, and logs of all standard error, by
way of a queue on this node; replies go the other way. The process group is torchrun's: `distributed.join` opens it.
"""

import json
import os
import select
import shutil
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO, NoReturn

from cai.config.errors import CaiError
from cai.inference.ray_cluster import amounts, connect
from cai.stats.formatting import counted
from cai.training.ray_options import SCRATCH, Options, parse
from cai.training.ray_worker import Job, trainer

ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # the ends of workers show as soon; Ray's own is 2
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "1800",  # for nodes that a cluster adds; Ray's own is 60
    "RAY_TRAIN_METRICS_ENABLED": "0",
}
"""Of Ray Train; what the user has set comes first."""


def main() -> int:
    """Run what follows `--` in the workers; returns the exit status."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # what Ray prints must not stand between the events
    _leave_at_signals()
    if not sys.stdin.isatty():
        threading.Thread(target=_leave_with_parent, daemon=True).start()
    split = sys.argv.index("--")
    try:
        return _Launch(parse(sys.argv[1:split]), sys.argv[split + 1 :], events).run()
    except CaiError as error:
        events.write(json.dumps({"error": str(error)}) + "\n")
        return 2


class _Launch:
    """One run of Ray Train: its driver, and the far end of the workers' queue."""

    def __init__(self, options: Options, arguments: list[str], events: IO[str]) -> None:
        self._options, self._arguments, self._events = options, arguments, events
        self._statuses: list[int] = []
        self._failure: Exception | None = RuntimeError("Ray ended before the training")

    def run(self) -> int:
        """Returns the exit status: that of the worker that failed first. Raises: CaiError where Ray cannot be used."""
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        cores = max(len(os.sched_getaffinity(0)), self._options.workers * self._options.cpus_per_worker)
        connect(self._options.address, "launcher: ray --address", {"num_cpus": cores})
        _leave_at_signals()  # Ray's own handler prints a stack
        import ray
        from ray.util.queue import Queue

        here = {"num_cpus": 0, "label_selector": {"ray.io/node-id": ray.get_runtime_context().get_node_id()}}
        self._messages, self._replies = Queue(actor_options=here), Queue(actor_options=here)
        self._check_room()
        threading.Thread(target=self._fit, daemon=True).start()
        follower = threading.Thread(target=self._follow, daemon=True)
        follower.start()
        follower.join()
        with suppress(Exception):  # the training is over
            ray.shutdown()
        if self._failure is None:
            return 0
        print(f"launcher: ray: {_summary(self._failure)}", file=sys.stderr, flush=True)
        return next((status for status in self._statuses if status > 0), 1)

    def _gpus(self, total: dict[str, float]) -> int:
        chosen = self._options.gpus_per_worker
        return int(total.get("GPU", 0) > 0) if chosen is None else chosen

    def _check_room(self) -> None:
        """Raises: CaiError when a Ray that was started here has not what the workers need; a cluster may still grow."""
        import ray

        total, workers = ray.cluster_resources(), self._options.workers
        self._needed = {"CPU": self._options.cpus_per_worker, "GPU": self._gpus(total)}
        if all(amount * workers <= total.get(resource, 0) for resource, amount in self._needed.items()):
            return
        needs = f"{counted(workers, 'workers')} with {amounts(self._needed)} each"
        if self._options.address is None:
            raise CaiError(f"launcher: ray --workers: {needs}, but this machine has {amounts(total)}")
        text = f"launcher: ray: {needs} wait for a cluster that has {amounts(total)}"
        self._events.write(json.dumps({"warning": text}) + "\n")

    def _fit(self) -> None:
        """Train to the end, of which the queue's last message tells."""
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.v2.api.config import LoggingConfig

        stage = Path(self._arguments[-1]).resolve().parent
        shutil.rmtree(stage / SCRATCH, ignore_errors=True)  # Ray Train's state of a run, from which it would resume
        try:
            job = Job.here(self._arguments, self._messages, self._replies)
            once = FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0)
            trainer(
                job,
                ScalingConfig(
                    num_workers=self._options.workers,
                    use_gpu=self._needed["GPU"] > 0,
                    resources_per_worker={name: amount for name, amount in self._needed.items() if amount},
                ),
                RunConfig(
                    name=SCRATCH,
                    storage_path=str(stage),
                    failure_config=once,
                    logging_config=LoggingConfig(log_level="ERROR"),
                ),
            ).fit()
            self._failure = None
        except Exception as error:  # of Ray, of the workers
            self._failure = error
        finally:
            shutil.rmtree(stage / SCRATCH, ignore_errors=True)
        self._messages.put(("done", ""))

    def _follow(self) -> None:
        """Write what the workers send; the lines of each stay in order."""
        while True:
            kind, content = self._messages.get()
            if kind == "event":
                self._events.write(content)
            elif kind == "ask":
                self._events.write(content)
                with os.fdopen(os.dup(0), encoding="utf-8") as replies:  # the parent writes nothing that is not asked
                    self._replies.put(replies.readline())
            elif kind == "log":
                sys.stderr.write(content)
                sys.stderr.flush()
            elif kind == "status":
                self._statuses.append(content)
            else:
                return


def _summary(error: Exception) -> str:
    """An error of Ray Train on one line: of a worker that failed, or of Ray."""
    from ray.exceptions import RayActorError

    for rank, failure in getattr(error, "worker_failures", {}).items():
        if isinstance(failure, RayActorError):
            return f"the Ray worker of process {rank} died, or its node"
        error = failure
        break
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:600] if lines else repr(error)


def _leave_at_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: _leave(128 + number))


def _leave_with_parent() -> None:
    ends = select.poll()
    ends.register(0, 0)  # its end alone: what it holds is for `_follow`
    ends.poll()
    _leave(1)


def _leave(status: int) -> NoReturn:
    """End at once, with the processes of a Ray that was started here; a cluster ends what a lost launcher ran."""
    import psutil

    children = psutil.Process().children(recursive=True)
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(children, timeout=1.0)
    os._exit(status)


if __name__ == "__main__":
    sys.exit(main())
