"""`cai import` and `cai export`."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel

from cai.cli.files import refuse_existing, write_file, write_new
from cai.config.characters import visible
from cai.config.errors import CaiError
from cai.config.locate import find_file, local_file
from cai.constitution.few_shot import few_shot_yaml, read_few_shot
from cai.constitution.templates import Templates
from cai.data.completions import iter_completions
from cai.data.exports import NAMES, table_writer
from cai.data.forms import Seen
from cai.data.jsonl import RowWriter, write_rows
from cai.data.preferences import iter_preferences
from cai.data.prompts import iter_prompts
from cai.data.records import Demonstration, Preference, Prompt, Skipped
from cai.runs.folder import RunFolder, open_run, runs_meant
from cai.runs.publish import (
    FORMATS,
    HUB,
    OF_RUNS,
    Source,
    alpaca_files,
    annotated_document,
    publish,
    table,
    write_dataset,
)
from cai.stats.formatting import counted

Reader = Callable[[Path, Seen], Iterator[BaseModel]]
TARGETS: dict[str, tuple[type[BaseModel], Reader]] = {
    "prompts": (Prompt, iter_prompts),
    "preferences": (Preference, iter_preferences),
    "completions": (Demonstration, iter_completions),
}
FEW_SHOT = "few-shot"
UNKNOWN = "unknown"  # what the Hub calls a licence that is not stated
PLACES = 3  # of what is left out, named on the screen; the others are in the file
Reasons = dict[str, list[str]]
"""Why rows were left out, and the places of each reason."""


def import_file(name: str, target: str, out: Path) -> None:
    """Write another's file as ours, and say what was read, left out and not read."""
    if target not in (*TARGETS, FEW_SHOT):
        hint = "; `cai constitution import` reads constitutions" if target.startswith("constitution") else ""
        raise CaiError(f"--as {target}: expected one of {', '.join((*TARGETS, FEW_SHOT))}{hint}")
    source = local_file(name)
    if target == FEW_SHOT:
        _import_few_shot(source, out)
        return
    row, read = TARGETS[target]
    seen = Seen()
    count, reasons = _write_table(out, row, read(source, seen), f"{source}: no {target} in this file")
    forms = ", ".join(f"{n} as {form}" for form, n in seen.forms.most_common())
    typer.echo(f"Wrote {out}: {counted(count, target)} out of {source} (rows: {forms})")
    for form, note in seen.notes.items():
        typer.echo(f"  {form}: {note}")
    _echo_skipped(reasons, _rest(out))
    if seen.unread:
        fields = ", ".join(f"{visible(field)} ({n})" for field, n in seen.unread.most_common(12))
        more = f" and {len(seen.unread) - 12} more" if len(seen.unread) > 12 else ""
        typer.echo(f"  not read: {fields}{more}")


def _import_few_shot(source: Path, out: Path) -> None:
    has_templates = (out.parent / "judge.jinja").exists()
    folder = out.parent if has_templates else find_file("templates", "prompts/default", Path("cai import"))
    few_shot = read_few_shot(source, Templates(folder))
    write_new(out, few_shot_yaml(few_shot, f"Demonstrations out of {source.name}."))
    parts = {"revision": few_shot.revision, "judge": few_shot.judge}
    turns = ", ".join(f"{counted(len(part), 'turns')} under {name}:" for name, part in parts.items() if part)
    typer.echo(f"Wrote {out}: {turns}")
    if out.name != "few_shot.yaml" or not has_templates:
        typer.echo("  It is read as few_shot.yaml in a folder of templates: copy prompts/default beside it")


def export_file(name: str, format: str, out: Path, runs: Path) -> None:
    """Write a run's rows, or a file's, in a format of others, and say what that has no place for."""
    if format not in FORMATS:
        raise CaiError(f"--format {format}: expected one of {', '.join(FORMATS)}")
    source = _run_or_file(name, runs)
    lost, nothing = Counter[str](), f"{name}: nothing to write as {format}"
    if format in OF_RUNS and not isinstance(source, RunFolder):
        raise CaiError(f"{name}: --format {format} is made of a run's {OF_RUNS[format]}, and this is a file")
    if format == "alpaca-eval" and isinstance(source, RunFolder):
        files, skipped = alpaca_files(source)
        count, rest = len(files["annotations.json"]), out / "skipped.jsonl"
        reasons = _write_json({out / file: entries for file, entries in files.items()}, skipped, rest, nothing)
    elif format == "annotated-pairs":
        document, skipped = annotated_document(source, lost)
        count, rest = len(document["comparisons"]), _rest(out)
        reasons = _write_json({out: document} if count else {}, skipped, rest, nothing)
    else:
        rest = _rest(out)
        count, reasons = _write_table(out, *table(source, format, lost), nothing)
    typer.echo(f"Wrote {out}: {counted(count, 'rows')} of {name} as {format}")
    _echo_skipped(reasons, rest)
    if lost:
        said = ", ".join(f"{thing} ({n})" for thing, n in lost.items())
        typer.echo(f"note: lost, since the format has no place for them (pairs or answers): {said}", err=True)


def export_dataset(name: str, to: str, licence: str, runs: Path) -> None:
    """Write a run as a data set with a card, to a folder or to the Hub."""
    run = open_run(name, runs)
    if to.startswith(HUB):
        typer.echo(f"Wrote {publish(run, to.removeprefix(HUB), licence)}")
        return
    found = write_dataset(run, Path(to), licence)
    typer.echo(f"Wrote {to}: a card (README.md) and")
    for split in found:
        typer.echo(f"  {split.file}: {counted(len(split.rows), 'rows')}")
    if licence == UNKNOWN:
        typer.echo("note: the card states no licence; name one by --license, such as cc-by-4.0", err=True)


def _run_or_file(name: str, runs: Path) -> Source:
    if any((folder / "manifest.json").exists() for folder in (runs / name, Path(name))):
        return open_run(name, runs)
    try:
        return local_file(name)
    except CaiError as error:
        raise CaiError(f"{error}; nor is it a run in {runs}/ ({runs_meant(name, runs)})") from error


def _write_table(
    out: Path, row: type, items: Iterable[BaseModel | Mapping[str, Any]], nothing: str
) -> tuple[int, Reasons]:
    """Write rows to `out`, and what is left out beside it; returns how many, and the places of each reason.

    Raises: CaiError, which starts with `nothing`, when there is no row, and for a file that is there already.
    """
    refuse_existing(out)
    refuse_existing(_rest(out))
    count, reasons = 0, Reasons()
    with table_writer(out, row) as write, RowWriter(_rest(out)) as others:
        for item in items:
            if isinstance(item, Skipped):
                reasons.setdefault(item.reason, []).append(_where(item))
                others.write(item)
            else:
                count += 1
                write(item)
        if not count:
            raise CaiError(nothing + _why(reasons))
    if not reasons:
        _rest(out).unlink()
    return count, reasons


def _write_json(documents: dict[Path, Any], skipped: list[Skipped], rest: Path, nothing: str) -> Reasons:
    reasons = Reasons()
    for row in skipped:
        reasons.setdefault(row.reason, []).append(_where(row))
    if not any(documents.values()):
        raise CaiError(nothing + _why(reasons))
    for path in (*documents, rest):
        refuse_existing(path)
    for path, document in documents.items():
        write_file(path, json.dumps(document, ensure_ascii=False, indent=1) + "\n")
    if skipped:
        write_rows(rest, skipped)
    return reasons


def _where(row: Skipped) -> str:
    """The place of a file's row, or of a run's the id of its prompt."""
    return row.stage if ":" in row.stage else row.prompt_id


def _why(reasons: Reasons) -> str:
    why = ", ".join(f"{len(places)} × {reason}" for reason, places in reasons.items())
    return f": {why}" if why else ""


def _rest(out: Path) -> Path:
    """Where the rows stand that are not in `out`."""
    longest_first = sorted(NAMES, key=len, reverse=True)
    stem = next((out.name.removesuffix(name) for name in longest_first if out.name.endswith(name)), out.name)
    return out.with_name(f"{stem}.skipped.jsonl")


def _echo_skipped(reasons: Reasons, rest: Path) -> None:
    """Print how many rows were left out for each reason, and where the first stand."""
    for reason, places in reasons.items():
        named = ", ".join(places[:PLACES]) + (", …" if len(places) > PLACES else "")
        typer.echo(f"  left out: {len(places)} × {visible(reason)} ({named})")
    if reasons:
        typer.echo(f"  all of them are listed in {rest}")
