"""Commands that read what there is: `cai show`, `runs`, `report`, `compare`, `import`, `export` and others."""

from pathlib import Path
from typing import Annotated

import typer

from cai.cli.options import DEFAULT_RUNS, RunsFolder
from cai.config.errors import CaiError

app = typer.Typer(rich_markup_mode=None)


@app.command()
def show(
    run: Annotated[str, typer.Argument(help="Name or folder of a run.")],
    stage: Annotated[str, typer.Option("--stage", help="revisions, preferences, evaluation or skipped.")] = "revisions",
    count: Annotated[int, typer.Option("-n", min=1, help="How many examples.")] = 3,
    runs: RunsFolder = DEFAULT_RUNS,
) -> None:
    """Print examples of a run, with all of their texts.

    Prompt, draft, principle, critique, revision and label; or those of another stage.
    """
    from cai.cli.show import show_examples

    show_examples(run, stage, count, runs)


@app.command("runs")
def list_runs(runs: RunsFolder = DEFAULT_RUNS) -> None:
    """List the runs of a folder, the newest first."""
    from cai.cli.runs import print_runs

    print_runs(runs)


@app.command()
def report(
    run: Annotated[str, typer.Argument(help="Name or folder of a run.")],
    html: Annotated[
        Path | None, typer.Option("--html", help="Where to write the page [report.html in the run's folder].")
    ] = None,
    runs: RunsFolder = DEFAULT_RUNS,
) -> None:
    """Make a page of a run.

    It holds figures, plots, what each principle did, every example, and all settings.
    """
    from cai.cli.report import write_report

    write_report(run, html, runs)


@app.command()
def serve(
    runs: Annotated[Path, typer.Argument(help="Folder that holds the runs.")] = DEFAULT_RUNS,
    host: Annotated[str, typer.Option("--host", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="The port; 0 takes any that is free.")] = 8000,
) -> None:
    """Show all runs of a folder in a browser.

    Each with all of its examples; on this machine alone by default.
    """
    from cai.cli.serve import serve_runs

    serve_runs(runs, host, port)


@app.command()
def compare(
    names: Annotated[list[str], typer.Argument(metavar="A B [C]...", help="Names or folders of runs; A is the base.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    html: Annotated[Path | None, typer.Option("--html", help="Where to write the page [runs/comparison.html].")] = None,
    runs: RunsFolder = DEFAULT_RUNS,
) -> None:
    """Compare runs with the first one.

    What differs, what came of it principle by principle, and what is only noise.
    """
    from cai.cli.compare import compare_and_print

    compare_and_print(names, as_json, html, runs)


@app.command()
def attribute(
    sweep: Annotated[str, typer.Argument(help="Name or folder of a sweep with `principles: leave-one-out` or alone.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    html: Annotated[
        Path | None, typer.Option("--html", help="Where to write the page [attribution.html in the sweep's folder].")
    ] = None,
    runs: RunsFolder = DEFAULT_RUNS,
) -> None:
    """Tell what each principle of a sweep does.

    A matrix of principles and outcomes, with what is significant.
    """
    from cai.cli.attribute import attribute_and_print

    attribute_and_print(sweep, as_json, html, runs)


@app.command()
def schema(
    kind: Annotated[str, typer.Argument(help="constitution, run or sweep.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Where to write it, over an older one too; printed when left out.")
    ] = None,
) -> None:
    """Print the JSON Schema of a kind of file, for editors."""
    from cai.cli.schema import print_schema

    print_schema(kind, out)


@app.command("import")
def import_(
    file: Annotated[str, typer.Argument(help="A file in any form of docs/formats.md, or a Hub id: org/name:split.")],
    target: Annotated[str, typer.Option("--as", metavar="WHAT", help="prompts, preferences, completions or few-shot.")],
    out: Annotated[Path, typer.Option("--out", help="Where to write it: .jsonl (.gz, .zst), .json, .parquet.")],
) -> None:
    """Write a file of others in our form.

    What is left out is listed. Runs and training read such files directly too.
    """
    from cai.cli.exchange import import_file

    import_file(file, target, out)


@app.command()
def export(
    source: Annotated[str, typer.Argument(help="A run's name or folder; with --format also a file in any form.")],
    format: Annotated[
        str | None, typer.Option("--format", metavar="NAME", help="trl-preference, hh-rlhf …: see docs/formats.md.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Where to write that: .jsonl (.gz, .zst), .json, .parquet.")
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", help="In place of a format: a folder, or hub:org/name, for a whole data set.")
    ] = None,
    licence: Annotated[
        str, typer.Option("--license", help="The data set's licence: apache-2.0, cc-by-4.0.")
    ] = "unknown",
    runs: RunsFolder = DEFAULT_RUNS,
) -> None:
    """Write a run or a file in a format of others.

    With --format and --out the rows of a run or a file; with --to a whole run as a data set with a card.
    """
    from cai.cli.exchange import export_dataset, export_file

    if to is not None and format is None and out is None:
        export_dataset(source, to, licence, runs)
    elif to is None and format is not None and out is not None:
        export_file(source, format, out, runs)
    else:
        raise CaiError("expected either --format NAME and --out FILE, or --to FOLDER or hub:org/name")
