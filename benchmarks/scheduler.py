"""What `cai` itself costs: whole runs over an engine that answers at once.

    python benchmarks/scheduler.py [PROMPTS ...]

For each number of prompts (1,000 and 10,000; 100,000 takes minutes) a process of its own makes a run of them with the
shipped `harmless` constitution: five questions about which principles apply, draft, critique, revision, a second
sample, and verdicts of one principle on both pairs in both orders, 13 calls a prompt, with texts of about 400
characters. Everything is as in `cai run` but the model: prompts from a file, templates, cache, scheduler, rows,
summary. The engine keeps nothing.

Reading the line of JSON: `calls_per_second` are calls ÷ seconds of the feedback stage, `cpu_ms_per_call` its processor
time, by number of prompts; `ratio` is the first of the last number ÷ that of the first number (1: time grows linearly
with the prompts); `seconds` is the whole run, with manifest and summary; `mb` the peak of resident memory, of which
`mb_before` was there when the first call was made.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from cai.inference.engine import Choose, Completion, Engine, EngineConfig, Generate
from cai.inference.models import Model
from cai.inference.reporter import Reporter
from cai.runs.folder import CACHE_FILE, RunFolder
from cai.runs.pipeline import execute
from cai.runs.plan import make_plan

ROOT = Path(__file__).parent.parent
FILLER = (
    "here is what was asked, first in short. Then comes a reason why it should be so, and an example from daily "
    "life that shows it. Some people see this otherwise; their best argument is named too, together with what "
    "speaks against it. Whoever wants to know more finds books in every library, and may ask again about any "
    "single step. At the end stands the same thing once more in fewer words, since long texts are hard to keep in "
    "mind."
)
RUN = """
model: {model}
constitution: harmless
templates: {root}/prompts/default
prompts: {{source: {prompts}, holdout: 0.0}}
revise: {{rounds: 1}}
judge: {{samples: 2, principles: 1}}
engine: {{concurrency: 256}}
"""


class Instant:
    """An engine that answers at once, a text that differs with the request, and keeps nothing of it."""

    first_call_mb = 0.0

    def __init__(self, fingerprint: str) -> None:
        self.fingerprint = fingerprint

    async def generate(self, request: Generate) -> Completion:
        if not Instant.first_call_mb:
            Instant.first_call_mb = resident_mb()
        name = f"{request.seed} {hash(request.messages[-1]['content'])}"
        return Completion(f"On {name}: {FILLER}", "stop", 200, 100)

    async def choose(self, request: Choose) -> list[float]:
        p = hash(request.messages[-2]["content"]) % 97 / 100 + 0.015
        return [float(f"-{1 - p:.3f}"), float(f"-{p:.3f}")]

    async def close(self) -> None:
        """Nothing to free."""


def open_instant(model: Model, fingerprint: str, settings: EngineConfig) -> Engine:
    return Instant(fingerprint)


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def prompt_rows(count: int) -> Iterator[str]:
    for i in range(count):
        text = f"What is special about the number {i}? Think of its factors, say where it occurs, and be brief."
        yield json.dumps({"id": f"n{i}", "prompt": text}) + "\n"


def write_workspace(folder: Path, count: int) -> Path:
    """A folder with a run file of `count` prompts, and a model that nothing loads."""
    model = folder / "model"
    model.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (model / name).write_text("{}", encoding="utf-8")
    with (folder / "prompts.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(prompt_rows(count))
    run_file = folder / "run.yaml"
    run_file.write_text(RUN.format(model=model, root=ROOT, prompts=folder / "prompts.jsonl"), encoding="utf-8")
    return run_file


def run(run_file: Path, name: str) -> dict[str, Any]:
    """The summary of a run, made or replayed, and the seconds it took from reading the run file on."""
    start = time.perf_counter()
    plan = make_plan(run_file, [], name, run_file.parent / "runs")
    execute(plan, Reporter(Console(quiet=True)), open_engine=open_instant)
    summary = RunFolder(plan.folder.path).summary()
    assert summary is not None
    return {**summary, "wall": time.perf_counter() - start}


def measured(count: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        run_file = write_workspace(Path(folder), count)
        cpu = time.process_time()
        summary = run(run_file, "first")
        cpu = time.process_time() - cpu
        calls, feedback = summary["calls"]["cache_misses"], summary["work"][0]["seconds"]
        return {
            "prompts": count,
            "calls": calls,
            "calls_per_second": round(calls / feedback),
            "cpu_ms_per_call": round(1000 * cpu / calls, 3),
            "feedback_seconds": round(feedback, 1),
            "seconds": round(summary["wall"], 1),
            "mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10),
            "mb_before": round(Instant.first_call_mb),
            "cache_mb": round((run_file.parent / "runs" / CACHE_FILE).stat().st_size / 2**20),
        }


def child(count: int) -> dict[str, float]:
    command = [sys.executable, __file__, "only", str(count)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": "0"}
    )
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    print(found, file=sys.stderr, flush=True)
    return found


def main() -> None:
    if sys.argv[1:2] == ["only"]:
        print(json.dumps(measured(int(sys.argv[2]))))
        return
    sizes = [child(int(count)) for count in sys.argv[1:] or ("1000", "10000")]
    ratio = round(sizes[-1]["calls_per_second"] / sizes[0]["calls_per_second"], 3)
    print(json.dumps({"benchmark": "scheduler", "ratio": ratio, "by_prompts": sizes}))


if __name__ == "__main__":
    main()
