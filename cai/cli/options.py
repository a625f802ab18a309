"""The options that several commands share, each with one name and one help text, and what they resolve to.

An option that stands for a setting of a run file takes its help, bounds and default from the setting's field.
"""

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from cai.config.errors import CaiError
from cai.config.validation import NAMES, RUN_NAME
from cai.inference.models import RUNS
from cai.runs.run_file import RunConfig


def setting(model: type[BaseModel], field: str, flag: str, metavar: str) -> Any:
    """A `typer.Option` for a setting: the field's bounds, and its description up to the first stop."""
    info = model.model_fields[field]
    bounds = {name: getattr(bound, key) for bound in info.metadata for name, key in BOUNDS if hasattr(bound, key)}
    return typer.Option(flag, metavar=metavar, help=first_clause(info.description or ""), **bounds)


def default(model: type[BaseModel], field: str) -> Any:
    """The default of a field of a settings model."""
    return model.model_fields[field].default


def first_clause(description: str) -> str:
    """A description up to its first semicolon or full stop, as a sentence."""
    return STOP.split(description, maxsplit=1)[0].rstrip(".") + "."


def check_name(name: str) -> str:
    """The run's name of a --name. Raises: CaiError for one that no run may have."""
    if not re.fullmatch(RUN_NAME, name):
        raise CaiError(f"--name {name}: expected {NAMES[RUN_NAME]}")
    return name


BOUNDS = (("min", "ge"), ("max", "le"))  # typer's names and annotated_types'
STOP = re.compile(r"[;.]\s")

DEFAULT_RUNS = RUNS
DEFAULT_TEMPLATES: str = default(RunConfig, "templates")
DEFAULT_SEED: int = default(RunConfig, "seed")

Seed = Annotated[int, setting(RunConfig, "seed", "--seed", "N")]
ModelName = Annotated[str, setting(RunConfig, "model", "--model", "NAME")]
ModelOrServer = Annotated[
    str, typer.Option("--model", metavar="NAME", help="Model name, folder, Hub id, or server URL#NAME.")
]
KeyEnv = Annotated[
    str | None,
    typer.Option("--key-env", metavar="VAR", help="Environment variable with the server's key."),
]
TemplatesFolder = Annotated[str, setting(RunConfig, "templates", "--templates", "DIR")]

RunsFolder = Annotated[Path, typer.Option("--runs", metavar="DIR", help="Folder of runs and their cache.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="Name or folder of a run.")]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting.")]
Replace = Annotated[bool, typer.Option("--replace", help="Overwrite results of other settings.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show calls, tokens and time; run nothing.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
PageOut = Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Where to write the HTML page.")]
ConstitutionName = Annotated[
    str, typer.Option("--constitution", metavar="NAME", help="YAML file, shipped constitution, or run.")
]
ConstitutionFiles = Annotated[
    list[str], typer.Argument(metavar="CONSTITUTION...", help="YAML files or shipped constitutions.")
]
JudgeNames = Annotated[
    list[str], typer.Option("--judge", metavar="NAME", help="Judge model or server URL#NAME; repeat for a panel.")
]
Data = Annotated[
    Path, typer.Option("--data", metavar="FILE", help="File or Hub id: preferences, or prompt and responses.")
]
Limit = Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="Use only the first N rows.")]
PrincipleId = Annotated[str | None, typer.Option("--principle", metavar="ID", help="Only this principle.")]
