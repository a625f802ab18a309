"""A run on a slow scripted engine, to be killed: python -m tests.runs.slow_run RUN_FILE NAME RUNS."""

import sys
from pathlib import Path

from rich.console import Console

from cai.inference.engine import Choose
from cai.inference.reporter import Reporter
from cai.runs.pipeline import execute
from cai.runs.plan import make_plan
from tests.conftest import scripted


def weigh(request: Choose) -> tuple[float, float]:
    length = len(request.messages[0]["content"])
    return (0.2 + length % 7 / 10, 0.1)


if __name__ == "__main__":
    run_file, name, runs = sys.argv[1:]
    plan = make_plan(Path(run_file), [], name, Path(runs))
    execute(plan, Reporter(Console()), open_engine=scripted(weigh=weigh, delay=0.05))
