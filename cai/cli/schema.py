"""`cai schema`: what an editor needs to complete and check constitutions, run files and sweeps."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from cai.cli.console import echo, write_file
from cai.config.errors import CaiError, reading

DRAFT = "https://json-schema.org/draft/2020-12/schema"


def schema_text(kind: str) -> str:
    """The JSON Schema of `constitution`, `run` or `sweep`, derived from its model; else CaiError."""
    model: type[BaseModel]
    if kind == "constitution":
        from cai.constitution.principles import Constitution as model
    elif kind == "run":
        from cai.runs.run_file import RunConfig as model
    elif kind == "sweep":
        from cai.runs.sweep import SweepConfig as model
    else:
        raise CaiError(f"unknown kind '{kind}'; expected constitution, run or sweep")
    document = {"$schema": DRAFT, **model.model_json_schema()}
    return json.dumps(document, ensure_ascii=False, indent=2) + "\n"


def schema(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="constitution, run or sweep.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="File to write; an older schema is overwritten.")
    ] = None,
) -> None:
    """Print the JSON Schema of a file type.

    Editors use it to complete and check constitutions, run files and sweeps.
    """
    text = schema_text(kind)
    if out is None:
        typer.echo(text, nl=False)
        return
    older = out.exists()
    if older and _title(_content(out)) != _title(text):
        raise CaiError(f"--out {out}: exists and is not a schema of a {kind}; choose another name or delete it first")
    write_file(out, text)
    echo(f"Wrote {out}{', replacing an older one' if older else ''}.")
    echo("To use it in an editor, start a file with this line (the path is relative to that file):")
    echo(f"# yaml-language-server: $schema={out}")


def _content(path: Path) -> bytes:
    with reading(path):
        return path.read_bytes()


def _title(text: str | bytes) -> Any:
    """The name of the model that a schema describes; None for any other text."""
    try:
        document = json.loads(text)
    except ValueError:
        return None
    return document.get("title") if isinstance(document, dict) and "$schema" in document else None
