"""`cai runs`."""

from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cai.evaluation.statistics import Estimate
from cai.runs.folder import all_runs


def print_runs(runs: Path) -> None:
    """A table of all runs, oldest first."""
    console, folders = Console(), all_runs(runs)
    if not folders:
        console.print(f"No runs in {runs}/. Start one: cai run examples/quickstart.yaml", markup=False)
        return
    table = Table(box=None)
    for column in ("run", "started", "state", "constitution", "prompts", "training", "win rate"):
        table.add_column(column)
    for folder in folders:
        lock, summary = folder.lock(), folder.summary()
        evaluation = summary and summary["evaluation"]
        table.add_row(
            folder.name,
            datetime.fromtimestamp(folder.lock_json.stat().st_mtime).strftime("%Y-%m-%d %H:%M"),
            "finished" if summary else "unfinished",
            f"{lock['constitution']['name']} ({len(lock['constitution']['principles'])})",
            str(len(folder.prompts())),
            " ".join(stage["stage"] for stage in lock["config"]["train"]) or "–",
            str(Estimate(**evaluation["win_rate"])) if evaluation else "–",
        )
    console.print(table)
