"""`cai runs`."""

import os

from cai.cli.console import WIDEST, Grid, line, result_console, show
from cai.cli.options import DEFAULT_RUNS, RunsFolder
from cai.config.characters import visible
from cai.report.lists import FAILED, STATES, all_entries

UNREADABLE = "unreadable"


def runs(folder: RunsFolder = DEFAULT_RUNS) -> None:
    """List runs and trainings, newest first."""
    console, entries = result_console(), all_entries(folder)
    if not console.is_terminal and "COLUMNS" not in os.environ:  # what reads a pipe gets every column
        console.width = WIDEST
    if not entries:
        line(console, f"No runs in {folder}/. Start one: cai run examples/quickstart.yaml")
        return
    headings = ["run", "started", "state", "constitution", "prompts", "held out", "training", "win rate"]
    grid = Grid(headings, optional=[5, 4, 6, 3], left=4, broken=0)
    for run in entries:
        state = run.state if run.state in STATES else UNREADABLE
        cells = (run.started, state, run.constitution, run.prompts, run.held_out, run.training, run.win_rate)
        grid.add(run.name, *(cell or "–" for cell in cells))
    show(console, grid)
    for run in entries:
        if run.state == FAILED:
            line(console, visible(f"{run.name} failed: {run.progress}"))
        elif run.state not in STATES:
            line(console, visible(f"{run.name}: {run.state}"))
