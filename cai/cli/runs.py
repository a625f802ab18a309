"""`cai runs`."""

from rich.table import Table
from rich.text import Text

from cai.cli.console import line, whole
from cai.cli.options import DEFAULT_RUNS, RunsFolder
from cai.config.characters import Terminal, visible
from cai.report.lists import FAILED, all_entries


def runs(folder: RunsFolder = DEFAULT_RUNS) -> None:
    """List runs and trainings, newest first."""
    console, entries = Terminal(), all_entries(folder)
    if not entries:
        console.print(f"No runs in {folder}/. Start one: cai run examples/quickstart.yaml", markup=False)
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("run", "started", "state", "constitution", "prompts", "held out", "training", "win rate"):
        table.add_column(column, no_wrap=True)
    for run in entries:
        cells = (
            run.name,
            run.started or "–",
            run.state,
            run.constitution or "–",
            run.prompts or "–",
            run.held_out or "–",
            run.training or "–",
            run.win_rate or "–",
        )
        table.add_row(*(Text(visible(cell)) for cell in cells))
    whole(console, table)
    for run in entries:
        if run.state == FAILED:
            line(console, f"{run.name} failed: {run.progress}")
