"""`cai runs`."""

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cai.cli.console import whole
from cai.config.characters import visible
from cai.report.serve import listed
from cai.runs.folder import all_runs


def print_runs(runs: Path) -> None:
    """A table of all runs, the newest first, as `cai serve` lists them."""
    console, folders = Console(), all_runs(runs)
    if not folders:
        console.print(f"No runs in {runs}/. Start one: cai run examples/quickstart.yaml", markup=False)
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("run", "started", "state", "constitution", "prompts", "training", "win rate"):
        table.add_column(column, no_wrap=True)
    for folder in folders:
        run = listed(str(folder.path.relative_to(runs)), folder)
        cells = (
            run.name,
            run.started or "–",
            run.state,
            run.constitution,
            run.prompts,
            run.training or "–",
            run.win_rate or "–",
        )
        table.add_row(*(Text(visible(cell)) for cell in cells))
    whole(console, table)
