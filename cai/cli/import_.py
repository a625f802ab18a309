"""`cai import`."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from cai.cli.console import echo, refuse_existing, write_new
from cai.config.characters import visible
from cai.config.errors import CaiError
from cai.config.locate import find_file, local_file
from cai.constitution.external import few_shot_yaml, read_few_shot
from cai.constitution.templates import Templates
from cai.data.files import NAMES, table_writer
from cai.data.formats import ReadSummary
from cai.data.jsonl import RowWriter
from cai.data.preferences import iter_preferences
from cai.data.prompts import iter_completions, iter_prompts
from cai.data.records import Demonstration, Preference, Prompt, Skipped
from cai.stats.formatting import counted

Reader = Callable[[Path, ReadSummary], Iterator[BaseModel]]
TARGETS: dict[str, tuple[type[BaseModel], Reader]] = {
    "prompts": (Prompt, iter_prompts),
    "preferences": (Preference, iter_preferences),
    "completions": (Demonstration, iter_completions),
}
FEW_SHOT = "few-shot"
PLACES = 3  # of skipped rows, printed for each reason; the file lists all
Reasons = dict[str, list[str]]
"""Why rows were skipped, and the places of each reason."""


def import_(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="File in a format of docs/formats.md, or Hub id: org/name:split.")
    ],
    target: Annotated[str, typer.Option("--as", metavar="KIND", help="prompts, preferences, completions or few-shot.")],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="File to write: .jsonl (.gz, .zst), .json or .parquet.")
    ],
) -> None:
    """Convert a dataset to cai's format.

    Skipped rows are listed beside the file, with the reason. Runs and training also read external formats directly.
    """
    if target not in (*TARGETS, FEW_SHOT):
        hint = "; `cai constitution import` reads constitutions" if target.startswith("constitution") else ""
        raise CaiError(f"--as {target}: expected one of {', '.join((*TARGETS, FEW_SHOT))}{hint}")
    source = local_file(file)
    if target == FEW_SHOT:
        _import_few_shot(source, out)
        return
    row, read = TARGETS[target]
    summary = ReadSummary()
    count, reasons = write_table(out, row, read(source, summary), f"{source}: no {target} in this file")
    formats = ", ".join(f"{n} as {format}" for format, n in summary.formats.most_common())
    echo(f"Wrote {out}: {counted(count, target)} from {source} ({formats})")
    for format, note in summary.notes.items():
        echo(f"  {format}: {note}")
    echo_skipped(reasons, skipped_file(out))
    if summary.unused:
        fields = ", ".join(f"{visible(field)} ({n})" for field, n in summary.unused.most_common(12))
        more = f" and {len(summary.unused) - 12} more" if len(summary.unused) > 12 else ""
        echo(f"  unused fields: {fields}{more}")


def _import_few_shot(source: Path, out: Path) -> None:
    has_templates = (out.parent / "judge.jinja").exists()
    folder = out.parent if has_templates else find_file("templates", "prompts/default", Path("cai import"))
    few_shot = read_few_shot(source, Templates(folder))
    write_new(out, few_shot_yaml(few_shot, f"Demonstrations from {source.name}."))
    parts = {"revision": few_shot.revision, "judge": few_shot.judge}
    turns = ", ".join(f"{counted(len(part), 'turns')} under {name}:" for name, part in parts.items() if part)
    echo(f"Wrote {out}: {turns}")
    if out.name != "few_shot.yaml" or not has_templates:
        echo("  To use it, copy prompts/default and put it there as few_shot.yaml")


def write_table(
    out: Path, row: type, items: Iterable[BaseModel | Mapping[str, Any]], nothing: str
) -> tuple[int, Reasons]:
    """Write rows to `out`, and skipped ones beside it; returns how many, and the places of each reason.

    Raises: CaiError, which starts with `nothing`, when there is no row, and for an existing file.
    """
    refuse_existing(out)
    refuse_existing(skipped_file(out))
    count, reasons = 0, Reasons()
    with table_writer(out, row) as write, RowWriter(skipped_file(out)) as write_skipped:
        for item in items:
            if isinstance(item, Skipped):
                reasons.setdefault(item.reason, []).append(where(item))
                write_skipped.write(item)
            else:
                count += 1
                write(item)
        if not count:
            raise CaiError(nothing + why(reasons))
    if not reasons:
        skipped_file(out).unlink()
    return count, reasons


def where(row: Skipped) -> str:
    """The place of a row in a file, or the prompt id of a row in a run."""
    return row.stage if ":" in row.stage else row.prompt_id


def why(reasons: Reasons) -> str:
    """The reasons as the end of an error message; empty for none."""
    listed = ", ".join(f"{len(places)} × {reason}" for reason, places in reasons.items())
    return f": {listed}" if listed else ""


def skipped_file(out: Path) -> Path:
    """The file of the rows skipped in `out`."""
    longest_first = sorted(NAMES, key=len, reverse=True)
    stem = next((out.name.removesuffix(name) for name in longest_first if out.name.endswith(name)), out.name)
    return out.with_name(f"{stem}.skipped.jsonl")


def echo_skipped(reasons: Reasons, rest: Path) -> None:
    """Print how many rows were skipped for each reason, the first places, and the file that lists them."""
    echo_reasons(reasons)
    if reasons:
        echo(f"  all skipped rows are listed in {rest}")


def echo_reasons(reasons: Reasons) -> None:
    """Print how many rows were skipped for each reason, and the first places."""
    for reason, places in reasons.items():
        named = ", ".join(places[:PLACES]) + (", …" if len(places) > PLACES else "")
        echo(f"  skipped: {len(places)} × {visible(reason)} ({named})")
