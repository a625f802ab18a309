"""`cai export`."""

import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from cai.cli.console import echo, refuse_existing, write_file
from cai.cli.import_ import Reasons, echo_skipped, skipped_file, where, why, write_table
from cai.cli.options import DEFAULT_RUNS, RunsFolder
from cai.config.errors import CaiError
from cai.config.locate import local_file
from cai.config.validation import closest_names, did_you_mean
from cai.data.jsonl import write_rows
from cai.data.records import Skipped
from cai.runs.external_training import SKIPPED, STAGES, TRAINERS, export_training
from cai.runs.folder import RunFolder, is_run, open_run, runs_meant
from cai.runs.publish import (
    FORMATS,
    HUB,
    RUN_FORMATS,
    Source,
    alpaca_files,
    annotated_document,
    publish,
    table,
    write_dataset,
)
from cai.stats.formatting import counted, prompt_counts

UNKNOWN = "unknown"  # what the Hub calls a licence that is not stated


def export(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Name or folder of a run; with --format also a file.")
    ],
    format: Annotated[
        str | None, typer.Option("--format", metavar="NAME", help="trl-preference, hh-rlhf, verl, …: docs/formats.md.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="New .jsonl (.gz, .zst), .json or .parquet; or folder.")
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", metavar="TARGET", help="Folder or hub:org/name for a dataset with a card.")
    ] = None,
    licence: Annotated[
        str, typer.Option("--license", metavar="NAME", help="The dataset's licence, such as cc-by-4.0.")
    ] = UNKNOWN,
    runs: RunsFolder = DEFAULT_RUNS,
) -> None:
    """Export a run or a file to an external format.

    With --format and --out: the rows of a run or a file; for verl or openrlhf a folder, with which these trainers run
    the last ppo, grpo or rloo stage of a run. With --to: a whole run as a dataset folder with a card.
    """
    if to is not None and format is None and out is None:
        export_dataset(source, to, licence, runs)
    elif to is None and format in TRAINERS and out is not None:
        export_for_trainer(source, format, out, runs)
    elif to is None and format is not None and out is not None:
        export_file(source, format, out, runs)
    else:
        raise CaiError("expected either --format NAME and --out FILE, or --to FOLDER or hub:org/name")


def export_file(name: str, format: str, out: Path, runs: Path) -> None:
    """Write the rows of a run or a file in an external format; a note lists the fields it cannot hold."""
    if format not in FORMATS:
        known = (*FORMATS, *TRAINERS)
        near = closest_names(format, known)
        hint = f"unknown format; {did_you_mean(near)}" if near else f"expected one of {', '.join(known)}"
        raise CaiError(f"--format {format}: {hint}")
    source = _run_or_file(name, runs)
    lost, nothing = Counter[str](), f"{name}: nothing to write as {format}"
    if format in RUN_FORMATS and not isinstance(source, RunFolder):
        raise CaiError(f"{name}: --format {format} needs a run's {RUN_FORMATS[format]}, and this is a file")
    if format == "alpaca-eval" and isinstance(source, RunFolder):
        files, skipped = alpaca_files(source)
        count, rest = len(files["annotations.json"]), out / "skipped.jsonl"
        reasons = _write_json({out / file: entries for file, entries in files.items()}, skipped, rest, nothing)
    elif format == "annotated-pairs":
        document, skipped = annotated_document(source, lost)
        count, rest = len(document["comparisons"]), skipped_file(out)
        reasons = _write_json({out: document} if count else {}, skipped, rest, nothing)
    else:
        rest = skipped_file(out)
        count, reasons = write_table(out, *table(source, format, lost), nothing)
    echo(f"Wrote {out}: {counted(count, 'rows')} from {name} as {format}")
    echo_skipped(reasons, rest)
    if lost:
        fields = ", ".join(f"{field} ({n})" for field, n in lost.items())
        echo(f"note: dropped, because the format cannot hold them (with the number of rows): {fields}", err=True)


def export_for_trainer(name: str, trainer: str, out: Path, runs: Path) -> None:
    """Write a folder with which another trainer trains a run's last online stage on rewards."""
    if not any(is_run(folder) for folder in (runs / name, Path(name))) and Path(name).is_file():
        raise CaiError(f"{name}: --format {trainer} needs a run with a {STAGES} stage, and this is a file")
    made = export_training(open_run(name, runs), trainer, out)
    counts = prompt_counts(made.prompts, made.held_out)
    echo(f"Wrote {out}: {made.stage} of {name} for {TRAINERS[trainer]}, {counts}")
    reasons = Reasons()
    for row in made.skipped:
        reasons.setdefault(row.reason, []).append(where(row))
    echo_skipped(reasons, out / SKIPPED)
    echo(f"Next: read {out / 'train.sh'}, which names what {TRAINERS[trainer]} lacks, and run it in its environment")


def export_dataset(name: str, to: str, licence: str, runs: Path) -> None:
    """Write a run as a dataset with a card, to a folder or to the Hub."""
    run = open_run(name, runs)
    if to.startswith(HUB):
        echo(f"Wrote {publish(run, to.removeprefix(HUB), licence)}")
        return
    splits = write_dataset(run, Path(to), licence)
    echo(f"Wrote {to}: a card (README.md) and")
    for split in splits:
        echo(f"  {split.file}: {counted(len(split.rows), 'rows')}")
    if licence == UNKNOWN:
        echo("note: the card states no licence; add one, such as --license cc-by-4.0", err=True)


def _run_or_file(name: str, runs: Path) -> Source:
    if any(is_run(folder) for folder in (runs / name, Path(name))):
        return open_run(name, runs)
    try:
        return local_file(name)
    except CaiError as error:
        raise CaiError(f"{error}; nor is it a run in {runs}/ ({runs_meant(name, runs)})") from error


def _write_json(documents: dict[Path, Any], skipped: list[Skipped], rest: Path, nothing: str) -> Reasons:
    reasons = Reasons()
    for row in skipped:
        reasons.setdefault(row.reason, []).append(where(row))
    if not any(documents.values()):
        raise CaiError(nothing + why(reasons))
    for path in (*documents, rest):
        refuse_existing(path)
    for path, document in documents.items():
        write_file(path, json.dumps(document, ensure_ascii=False, indent=1) + "\n")
    if skipped:
        write_rows(rest, skipped)
    return reasons
