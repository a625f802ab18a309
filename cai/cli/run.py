"""`cai run`."""

import shlex
import sys
from pathlib import Path

from rich.console import Console

from cai.cli.figures import print_summary
from cai.runs.pipeline import execute
from cai.runs.plan import make_plan
from cai.runs.progress import Reporter


def run_and_print(run_file: Path, settings: list[str], name: str | None, replace: bool, runs: Path) -> None:
    """Carry out a run and print its figures; an interrupt says how to go on."""
    console = Console()
    plan = make_plan(run_file, settings, name, runs)
    try:
        folders = execute(plan, Reporter(console), replace)
    except KeyboardInterrupt:
        command = shlex.join(["cai", *(arg for arg in sys.argv[1:] if arg != "--replace")])
        console.print(
            f"\nInterrupted. Every answer so far is remembered; to go on, run the same command again:\n  {command}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        raise
    for folder in folders:
        if len(folders) > 1:
            console.print(folder.name, style="bold", highlight=False)
        print_summary(console, folder)
