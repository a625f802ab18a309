"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

RunsFolder = Annotated[Path, typer.Option("--runs", help="Folder that holds the runs and their cache.")]
DEFAULT_RUNS = Path("runs")
