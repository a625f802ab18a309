"""`cai constitution …`: start, look at, compare, check, test and exchange constitutions."""

from pathlib import Path
from typing import Annotated

import typer

from cai.cli.options import DEFAULT_RUNS, RunsFolder
from cai.inference.models import SMALL_MODEL

app = typer.Typer(help="Start, show, compare, check, test constitutions.", no_args_is_help=True, rich_markup_mode=None)
Source = Annotated[str, typer.Argument(help="A YAML file, a shipped one, or a run's name or folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Out = Annotated[Path | None, typer.Option("--out", help="Where to write it; printed when left out.")]


@app.command()
def new(
    path: Annotated[Path, typer.Argument(help="The YAML file to write; it must not exist yet.")],
    name: Annotated[str | None, typer.Option("--name", help="The constitution's name [the file's].")] = None,
) -> None:
    """Write a commented file with one principle, to start from."""
    from cai.cli.principles import start

    start(path, name or path.stem)


@app.command()
def show(
    file: Source,
    principle: Annotated[str | None, typer.Option("--principle", metavar="ID", help="Show this one alone.")] = None,
    runs: RunsFolder = DEFAULT_RUNS,
) -> None:
    """Print principles, their weights and shares of draws."""
    from cai.cli.principles import show_constitution

    show_constitution(file, principle, runs)


@app.command()
def diff(
    a: Annotated[str, typer.Argument(help="A YAML file, a shipped one, or a run's name or folder.")],
    b: Annotated[str, typer.Argument(help="The same; what A becomes.")],
    as_json: AsJson = False,
    runs: RunsFolder = DEFAULT_RUNS,
) -> None:
    """Say what differs between two constitutions, word by word.

    Also what a run would ask anew. Status: 0 when no run can tell them apart, 1 when they differ, 2 when one cannot
    be read.
    """
    from cai.cli.principles import compare_constitutions

    if compare_constitutions(a, b, as_json, runs):
        raise typer.Exit(1)


@app.command()
def lint(
    file: Annotated[list[str], typer.Argument(help="YAML files, or shipped ones.")],
    as_json: AsJson = False,
    strict: Annotated[bool, typer.Option("--strict", help="Fail on warnings too.")] = False,
) -> None:
    """Point at what may be wrong with constitutions.

    docs/constitutions.md explains each rule. Status: 1 when there is an error, with --strict a warning, else 0; hints
    never fail; 2 when a file cannot be read.
    """
    from cai.cli.principles import lint_constitutions

    if not lint_constitutions(file, as_json, strict):
        raise typer.Exit(1)


@app.command()
def test(
    file: Annotated[list[str], typer.Argument(help="YAML files, or shipped ones.")],
    principle: Annotated[str | None, typer.Option("--principle", metavar="ID", help="Test this one alone.")] = None,
    model: Annotated[
        str, typer.Option("--model", help="A known name, a folder, a Hub id, a server's URL#NAME.")
    ] = SMALL_MODEL,
    templates: Annotated[str, typer.Option("--templates", help="A folder of prompt templates.")] = "prompts/default",
    as_json: AsJson = False,
    runs: Annotated[Path, typer.Option("--runs", help="Folder of the cache.")] = DEFAULT_RUNS,
) -> None:
    """Carry out the tests of principles on a model.

    What it makes of their drafts is held against what is expected. Status: 0 when every test passes, 1 when one
    fails, 2 when they cannot be carried out.
    """
    from cai.cli.principle_tests import run_and_print_tests

    if not run_and_print_tests(file, principle, model, templates, as_json, runs):
        raise typer.Exit(1)


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="A JSON file in a format of others; which one is found out.")],
    out: Out = None,
) -> None:
    """Turn a constitution of others into YAML.

    Anthropic's critiques and revisions, its instructions for a judge, and Hugging Face's constitutions are known.
    """
    from cai.cli.principles import import_constitution

    import_constitution(file, out)


@app.command()
def export(
    file: Source,
    format: Annotated[
        str, typer.Option("--format", metavar="NAME", help="anthropic-critiques, anthropic-judge or huggingface.")
    ],
    out: Out = None,
    runs: RunsFolder = DEFAULT_RUNS,
) -> None:
    """Write a constitution in a format of others.

    What that could not hold is told.
    """
    from cai.cli.principles import export_constitution

    export_constitution(file, format, out, runs)
