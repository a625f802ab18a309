"""`cai verify`."""

import typer

from cai.cli.console import Grid, heading, line, result_console, show
from cai.cli.options import DEFAULT_RUNS, RunName, RunsFolder
from cai.runs.folder import open_run
from cai.runs.verify import reproducible, verify_run
from cai.stats.formatting import counted


def verify(run: RunName, runs: RunsFolder = DEFAULT_RUNS) -> None:
    """Check a run's folder against its manifest.

    Compares every file of results and model with the recorded fingerprints, reading weights again, and computes labels,
    rankings, metrics and win rates again from the stored verdicts. Calls no model. Exit status 1 if something differs.
    """
    folder, console = open_run(run, runs), result_console()
    checks = verify_run(folder)
    show(console, heading(f"{folder.name}: as recorded?"))
    grid = Grid(["", "", ""], left=3)
    for check in checks:
        grid.add(check.part, check.state, "" if check.state == "differs" and len(check.note) > 30 else check.note)
    show(console, grid)
    for check in checks:
        if check.state == "differs" and len(check.note) > 30:
            line(console, f"  {check.part}: {check.note}")
    show(console, heading("What a third party can reproduce"))
    grid = Grid(["", "with", "comes out"], left=3)
    for claim in reproducible(folder):
        grid.add(*claim)
    show(console, grid)
    line(console, "  nearly: floating-point sums depend on batch and hardware; rare tokens differ")
    if differing := sum(check.state == "differs" for check in checks):
        line(console, f"{folder.name}: {counted(differing, 'parts')} not as recorded")
        raise typer.Exit(1)
