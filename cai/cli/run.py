"""`cai run`."""

from pathlib import Path

from rich.console import Console
from rich.text import Text

from cai.cli.console import going_on, line
from cai.cli.figures import forecast_parts, print_summary
from cai.inference.progress import Reporter
from cai.runs.dry_run import dry_run
from cai.runs.pipeline import execute
from cai.runs.plan import make_plan


def forecast_and_print(
    run_file: Path, settings: list[str], name: str | None, runs: Path, gpu_rate: float | None
) -> None:
    """Print what a run will ask, how much of it is remembered, and what the rest may take; ask nothing."""
    plan = make_plan(run_file, settings, name, runs)
    console = Console()
    line(console, f"{plan.folder.name}: nothing is asked or written; this is what `cai run` would do")
    for part in forecast_parts(dry_run(plan), gpu_rate):
        console.print(part, soft_wrap=isinstance(part, Text))


def run_and_print(run_file: Path, settings: list[str], name: str | None, replace: bool, runs: Path) -> None:
    """Carry out a run and print its figures; an interrupt says how to go on."""
    console = Console()
    plan = make_plan(run_file, settings, name, runs)
    with going_on(console):
        folders = execute(plan, Reporter(console), replace)
    for folder in folders:
        if len(folders) > 1:
            console.print(folder.name, style="bold", highlight=False)
        print_summary(console, folder)
