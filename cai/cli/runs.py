"""`cai runs`."""

from rich.table import Table
from rich.text import Text

from cai.cli.console import whole
from cai.cli.options import DEFAULT_RUNS, RunsFolder
from cai.config.characters import Terminal, visible
from cai.report.serve import run_entry
from cai.runs.folder import all_runs


def runs(folder: RunsFolder = DEFAULT_RUNS) -> None:
    """List runs, newest first."""
    console, run_folders = Terminal(), all_runs(folder)
    if not run_folders:
        console.print(f"No runs in {folder}/. Start one: cai run examples/quickstart.yaml", markup=False)
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("run", "started", "state", "constitution", "prompts", "held out", "training", "win rate"):
        table.add_column(column, no_wrap=True)
    for each in run_folders:
        run = run_entry(str(each.path.relative_to(folder)), each)
        cells = (
            run.name,
            run.started or "–",
            run.state,
            run.constitution,
            run.prompts,
            run.held_out,
            run.training or "–",
            run.win_rate or "–",
        )
        table.add_row(*(Text(visible(cell)) for cell in cells))
    whole(console, table)
