"""Runs on a scripted engine for an hour: python -m tests.faults.soak [MINUTES]; `make soak` runs it.

Each run is executed, resumed from its cache, compared with the one before, and shown by `cai serve`'s code; then it is
deleted. Memory, open files and threads of the process must stay what they were after a first share of the runs. Prints
a line of progress a minute, and one line of JSON; exit status 1 if something grew.
"""

import json
import shutil
import sys
import tempfile
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import psutil
from rich.console import Console

from cai.inference.reporter import Reporter
from cai.report.serve import Library, respond
from cai.runs.pipeline import execute
from cai.runs.plan import make_plan
from tests.conftest import scripted, write_workspace

WARM_UP = 0.2  # share of the time after which nothing may grow: caches are full, modules are loaded
RSS_SLACK = 1.1  # of the memory then; the allocator keeps pages
FILES_SLACK = 2  # an open file or thread more or less is where the sample falls


class Usage(NamedTuple):
    """What the process holds."""

    mb: float
    files: int
    threads: int


def usage() -> Usage:
    """Memory in MB, open files and threads, now."""
    process = psutil.Process()
    return Usage(process.memory_info().rss / 1e6, process.num_fds(), process.num_threads())


def one_round(run_file: Path, runs: Path, number: int) -> None:
    """A run, the same from its cache, two runs compared, and their pages."""
    for name in ("first", "second"):
        overrides = [f"seed={number}", *(["revise.rounds=1"] if name == "second" else [])]
        for _ in range(2):
            plan = make_plan(run_file, overrides, name, runs)
            execute(plan, Reporter(Console(quiet=True)), True, scripted())
    library = Library(runs)
    for target in ("/", "/report?run=first", "/examples?run=first", "/report?run=first&run=second"):
        assert respond(library, target).status == 200, target
    for path in runs.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def main() -> int:
    """Go round for so many minutes; exit status 1 if memory, open files or threads grew."""
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    start, rounds, said = time.monotonic(), 0, 0.0
    settled: Usage | None = None
    with tempfile.TemporaryDirectory(prefix="cai-soak-") as folder:
        model = Path(folder) / "model"
        model.mkdir()
        for name in ("config.json", "tokenizer.json", "model.safetensors"):
            (model / name).write_text("{}", encoding="utf-8")
        run_file = write_workspace(Path(folder), model)
        while (elapsed := (time.monotonic() - start) / 60) < minutes:
            with redirect_stdout(StringIO()):
                one_round(run_file, Path(folder) / "runs", rounds)
            rounds, now = rounds + 1, usage()
            if settled is None and elapsed >= minutes * WARM_UP:
                settled = now
            if elapsed - said >= 1:
                said = elapsed
                print(
                    f"soak: {elapsed:.0f} of {minutes:g} min, {4 * rounds} runs, {now.mb:.0f} MB, {now.files} files",
                    flush=True,
                )
        last = usage()
    assert settled is not None
    grew = (
        last.mb > settled.mb * RSS_SLACK
        or max(last.files - settled.files, last.threads - settled.threads) > FILES_SLACK
    )
    record = {
        "minutes": minutes,
        "runs": 4 * rounds,
        "after warm-up": settled._asdict(),
        "at the end": last._asdict(),
        "flat": not grew,
    }
    print(json.dumps(record))
    return int(grew)


if __name__ == "__main__":
    sys.exit(main())
