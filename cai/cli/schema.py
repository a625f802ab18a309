"""`cai schema`: what an editor needs to complete and check constitutions, run files and sweeps."""

import json
from pathlib import Path

import typer
from pydantic import BaseModel

from cai.cli.files import write_file
from cai.errors import CaiError

DRAFT = "https://json-schema.org/draft/2020-12/schema"


def schema_text(kind: str) -> str:
    """The JSON Schema of `constitution`, `run` or `sweep`, made of the model that reads such files; else CaiError."""
    model: type[BaseModel]
    if kind == "constitution":
        from cai.constitution import Constitution as model
    elif kind == "run":
        from cai.runs.config import RunConfig as model
    elif kind == "sweep":
        from cai.runs.sweep import SweepConfig as model
    else:
        raise CaiError(f"{kind}: expected constitution, run or sweep")
    schema = {"$schema": DRAFT, **model.model_json_schema()}
    return json.dumps(schema, ensure_ascii=False, indent=2) + "\n"


def print_schema(kind: str, out: Path | None) -> None:
    """Print a schema, or write it, over an older one too; raises CaiError when `out` is a file of another kind."""
    text = schema_text(kind)
    if out is None:
        typer.echo(text, nl=False)
        return
    if out.exists() and not _is_schema(out):
        raise CaiError(f"--out {out}: already there, and no JSON Schema; give another name, or remove it first")
    write_file(out, text)
    typer.echo(f"Wrote {out}. An editor finds it by the first line of a file, with the path from there:")
    typer.echo(f"# yaml-language-server: $schema={out}")


def _is_schema(path: Path) -> bool:
    try:
        return "$schema" in json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False
