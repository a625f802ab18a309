"""Whole runs, training included, killed by SIGKILL at random moments: python -m tests.faults.kills MODEL [KILLS] [SEED].

A process that has imported everything once forks each run and each training worker, so that a kill costs as long as the
run lived. A killed run is run again, and killed again, until it completes; then its files must equal, byte for byte,
those of a run that nothing disturbed. Prints a line of progress per completed run, and one line of JSON at the end.
"""

import fcntl
import hashlib
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from cai.data.manifest import BUSY, FILES, MANIFEST_JSON
from cai.evaluation import scores
from cai.inference import cache
from cai.inference.engine import Choose
from cai.inference.reporter import Reporter
from cai.runs.pipeline import execute
from cai.runs.plan import make_plan
from cai.training import scoring, stage, worker
from cai.training.stage import Ask, Report
from tests.conftest import scripted, write_workspace
from tests.faults import reliability

PASSES = "lora_r: 2, num_train_epochs: 2, save_steps: 2, per_device_train_batch_size: 2, max_length: 256"
ONLINE = "lora_r: 2, save_steps: 1, max_tokens: 6, max_length: 256"
COMMON = """
engine: {concurrency: 4}
revise: {rounds: 1}
judge: {samples: 2, principles: 1}
"""
RUNS = {
    "one-policy": f"""
train:
  - {{stage: sft, {PASSES}}}
  - {{stage: reward, {PASSES}}}
  - {{stage: ppo, updates: 3, rollouts: 4, sample_steps: 1, {ONLINE}}}
  - {{stage: dpo, {PASSES}}}
""",
    "gate-seeds": f"""
judge_gate: {{data: LABELLED, accuracy: 0.01}}
seeds: 2
train:
  - {{stage: kto, {PASSES}}}
  - {{stage: orpo, {PASSES}}}
""",
    "iterations-online": f"""
iterations: 2
train:
  - {{stage: reward, {PASSES}}}
  - {{stage: rloo, reward: judge, num_train_epochs: 2, per_device_train_batch_size: 4, {ONLINE}}}
  - {{stage: grpo, num_train_epochs: 2, per_device_train_batch_size: 4, {ONLINE}}}
  - {{stage: online_dpo, per_device_train_batch_size: 2, {ONLINE}}}
""",
}
DELAY = 0.03  # seconds of a call to the scripted engine
LOGS = {"log.txt", "train.log", "scoring.log", ".busy", "costs.jsonl", "timing.json"}
TIMES = re.compile("seconds|^step_time$|^calls$|^work$|^in_all$|^cache_|^tokens$|^tokens_per_pair$")
FEW = 10  # kills, fewer than which go to the first of RUNS alone
SECONDS = 120  # after which a run that was not killed counts as one that hangs


def weigh(request: Choose) -> list[float]:
    """Verdicts and ratings that differ from one request to the next."""
    hashed = zlib.crc32("".join(message["content"] for message in request.messages).encode())
    return [0.1 + (hashed >> number) % 7 / 10 for number in range(len(request.options))]


def follow(command: list[str], log: Path, report: Report, reply: Ask | None = None) -> None:
    """`stage.follow` with a worker forked from this process in place of a new one; it too dies with its parent."""
    module, spec = command[-2:]
    (inside, alive), (events, written) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(inside, 0), os.dup2(written, 1), os.dup2(os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY), 2)
        os.closerange(3, 1024)  # as a new process does; else it would hold the run's lock
        sys.argv = [module, spec]
        os._exit(sys.modules[module].main())
    os.close(inside), os.close(written)
    with os.fdopen(events) as lines, os.fdopen(alive, "w") as answers:
        for line in lines:
            event = json.loads(line)
            if reply is not None and "ask" in event:
                print(json.dumps(reply(event["ask"])), file=answers, flush=True)
            else:
                report(event)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == 0, f"the worker ended with status {status}: {log.read_text(errors='replace')[-2000:]}"


def start(run_file: Path, runs: Path) -> int:
    """Fork a run; returns the number of its process."""
    child = os.fork()
    if child == 0:
        try:
            plan = make_plan(run_file, [], None, runs)
            execute(plan, Reporter(Console(quiet=True)), False, scripted(weigh=weigh, delay=DELAY))
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(1)
        os._exit(0)
    return child


def wait(child: int, seconds: float) -> int | None:
    """The exit status of a process that ends within so many seconds, else None."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


def wait_for_lock(path: Path) -> None:
    """Wait while a worker holds the lock of the run that was killed as it forked; a new process closes it at once."""
    if path.exists():
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # given back when it is closed


def manifest(path: Path) -> dict[str, Any]:
    """A manifest without the hashes of files, which are compared by themselves: some have times in them."""
    return {key: value for key, value in json.loads(path.read_text()).items() if key != FILES}


def untimed(value: Any) -> Any:
    """JSON without what counts time, or how many of the calls the cache answered."""
    if isinstance(value, dict):
        return {key: untimed(inside) for key, inside in value.items() if not TIMES.search(key)}
    return list(map(untimed, value)) if isinstance(value, list) else value


def contents(folder: Path) -> dict[str, object]:
    """Every file of a run but its logs: the hash of its bytes, or JSON without the times in it."""
    files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        name: [untimed(json.loads(line)) for line in path.read_text().splitlines()]
        if path.name == "metrics.jsonl"
        else manifest(path)
        if path.name == MANIFEST_JSON
        else untimed(json.loads(path.read_text()))
        if path.name in ("summary.json", "evaluation.json", "judge.json")
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in files.items()
        if path.name not in LOGS
    }


def place(folder: Path) -> str:
    """What a run that was killed worked on: the gate, feedback, the first stage without a model, or what follows."""
    stages = sorted(path.parent for path in folder.rglob("stage.json"))
    training = [path.name.partition("-")[2] for path in stages if not (path / "model").exists()]
    if training:
        return training[0]
    if stages:
        return "evaluation, feedback of an iteration, or between stages"
    return "feedback" if (folder / "prompts.jsonl").exists() else "gate or claim"


class Attacked(NamedTuple):
    """A run file, how long its run takes undisturbed, and what its folder then holds."""

    run_file: Path
    seconds: float
    expected: dict[str, object]

    @property
    def runs(self) -> Path:
        """The folder of its runs; one for all, because files name each other by path."""
        return self.run_file.parent / "runs"


def undisturbed(run_file: Path) -> Attacked:
    """Make the run that killed ones are compared with."""
    begun = time.monotonic()
    status = wait(start(run_file, run_file.parent / "runs"), SECONDS)
    assert status == 0, f"a run that nothing disturbs ends with status {status}"
    attacked = Attacked(run_file, time.monotonic() - begun, {})
    return attacked._replace(expected=contents(attacked.runs / "test"))


class Torture:
    """Kills of runs of some of RUNS, in turn, in a folder each, against runs that nothing disturbed."""

    def __init__(self, model: Path, folder: Path, seed: int, names: Sequence[str]) -> None:
        self.random = random.Random(seed)
        self.attacked = []
        for name in names:
            own = folder / name
            own.mkdir()
            labelled = own / "labelled.jsonl"
            rows = [{"prompt": f"Question {i}?", "chosen": "Yes." * (i + 1), "rejected": "No."} for i in range(4)]
            labelled.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            extra = COMMON + RUNS[name].replace("LABELLED", str(labelled))
            self.attacked.append(undisturbed(write_workspace(own, model, prompts=6, extra=extra)))
        self.kills, self.runs, self.lost = 0, 0, list[str]()
        self.places: Counter[str] = Counter()

    def run(self, most: int, say: Callable[[str], object] = print) -> None:
        """One run of the next run file, killed until it completes, at most so often."""
        attacked, killed = self.attacked[self.runs % len(self.attacked)], 0
        shutil.rmtree(attacked.runs)
        while True:
            child = start(attacked.run_file, attacked.runs)
            moment = self.random.uniform(0, attacked.seconds) if killed < most else SECONDS
            status = wait(child, moment)
            if status is not None:
                break
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            if killed == most:
                status = -1
                break
            wait_for_lock(attacked.runs / "test" / BUSY)
            killed += 1
            self.places[place(attacked.runs / "test")] += 1
        self.kills, self.runs = self.kills + killed, self.runs + 1
        problems = [f"ends with status {status}"] if status else differences(attacked)
        if problems:
            self.lost.append(f"run {self.runs}, killed {killed} times: {'; '.join(problems[:5])}")
            say(f"LOST {self.lost[-1]}")
        say(f"kills: {self.kills} in {self.runs} runs, {len(self.lost)} lost; {dict(self.places)}")


def differences(attacked: Attacked) -> list[str]:
    """Files that are not as in the undisturbed run, or missing, or more; and a damaged cache."""
    found, expected = contents(attacked.runs / "test"), attacked.expected
    with sqlite3.connect(attacked.runs / "cache.sqlite") as db:
        whole = db.execute("PRAGMA integrity_check").fetchone()[0]
    odd = [name for name in sorted(found.keys() | expected.keys()) if found.get(name) != expected.get(name)]
    named = [f"{name} differs{first_difference(found.get(name), expected.get(name))}" for name in odd]
    return [*named, *([] if whole == "ok" else [f"cache.sqlite: {whole}"])]


def first_difference(found: Any, expected: Any) -> str:
    """Where JSON differs, and in what; "" where either is a hash or missing."""
    if isinstance(found, dict) and isinstance(expected, dict):
        key = next((key for key in [*expected, *found] if found.get(key) != expected.get(key)), None)
        return "" if key is None else f" .{key}{first_difference(found.get(key), expected.get(key))}"
    if isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        place = next(i for i, pair in enumerate(zip(found, expected, strict=True)) if pair[0] != pair[1])
        return f"[{place}]{first_difference(found[place], expected[place])}"
    return f": {str(found)[:80]} instead of {str(expected)[:80]}"


def load() -> None:
    """Import what runs and workers need, once; one thread, because threads do not survive a fork."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    from cai.training import dpo, kto, online, orpo, reward, sft
    from cai.training.ppo import trainer

    torch.set_num_threads(1)
    assert dpo and kto and online and orpo and reward and sft and trainer and scoring and worker
    stage.follow = follow
    vars(scores)["follow"] = follow
    cache.LEASE_SECONDS = 1.0  # of killed runs, which the next one waits out


def main() -> int:
    """Kill until there were so many kills; exit status 1 if a run was lost."""
    model, kills = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 200
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else random.SystemRandom().randrange(2**32)
    print(f"kills: {kills}, seed {seed} (again: python -m tests.faults.kills {model} {kills} {seed})", flush=True)
    load()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="cai-kills-") as folder:
        torture = Torture(model, Path(folder), seed, list(RUNS)[: 1 if kills < FEW else None])
        while torture.kills < kills:
            torture.run(kills - torture.kills, lambda text: print(text, flush=True))
    for run in torture.lost:
        print(f"LOST {run}")
    record = {
        "kills": torture.kills,
        "runs": torture.runs,
        "lost": len(torture.lost),
        "seed": seed,
        "places": dict(torture.places),
    }
    reliability.add("kills", torture.kills, len(torture.lost), seed)
    print(json.dumps(record | {"minutes": round((time.monotonic() - begun) / 60, 1)}))
    return 1 if torture.lost else 0


if __name__ == "__main__":
    sys.exit(main())
