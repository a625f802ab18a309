"""The options that several commands share, each with one name and one help text, and what they resolve to."""

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from cai.config.errors import CaiError

DEFAULT_RUNS = Path("runs")
DEFAULT_TEMPLATES = "prompts/default"

RunsFolder = Annotated[Path, typer.Option("--runs", metavar="DIR", help="Folder of runs and their cache.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="Name or folder of a run.")]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting.")]
Replace = Annotated[bool, typer.Option("--replace", help="Overwrite results of other settings.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show calls, tokens and time; run nothing.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
PageOut = Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Where to write the HTML page.")]
TemplatesFolder = Annotated[
    str,
    typer.Option(
        "--templates",
        metavar="DIR",
        help="Folder of prompt templates.",
    ),
]
ConstitutionName = Annotated[
    str, typer.Option("--constitution", metavar="NAME", help="YAML file, shipped constitution, or run.")
]
ModelName = Annotated[
    str, typer.Option("--model", metavar="NAME", help="Model name, folder, Hub id, or server URL#NAME.")
]
JudgeNames = Annotated[
    list[str],
    typer.Option(
        "--judge",
        metavar="NAME",
        help="Judge model; repeat for a panel.",
    ),
]
Data = Annotated[
    Path, typer.Option("--data", metavar="FILE", help="File or Hub id: preferences, or prompt and responses.")
]
Limit = Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="Use only the first rows.")]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Random seed.")]
PrincipleId = Annotated[
    str | None,
    typer.Option(
        "--principle",
        metavar="ID",
        help="Use this principle alone.",
    ),
]


def find_constitution(name: str, runs: Path | None) -> Path:
    """The file that a path, the name of a shipped file, or a run's name or folder stands for; CaiError for none."""
    from cai.runs.folder import open_run, runs_meant

    path = Path(name)
    if path.is_file():
        return path
    if runs is not None and any((folder / "manifest.json").exists() for folder in (runs / name, path)):
        return open_run(name, runs).constitution_yaml
    from cai.config.locate import find_file, near

    with suppress(CaiError):
        shipped = find_file("constitution", name, path)
        if shipped.is_file():
            return shipped
    what = "a folder without a run" if path.is_dir() else "no such file"
    known = f", nor a run in {runs}/ ({runs_meant(name, runs)})" if runs else ""
    raise CaiError(f"{name}: {what}{known}{near(name, path)}")
