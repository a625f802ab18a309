"""What `cai constitution …` prints and writes."""

import json
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cai.cli.changes import COLOURS, marked
from cai.cli.files import write_new
from cai.config.characters import visible
from cai.config.errors import CaiError
from cai.constitution import principles
from cai.constitution.external import read_foreign, write_foreign
from cai.constitution.lint import Finding, lint
from cai.constitution.principles import (
    TEXTS,
    Constitution,
    Difference,
    Principle,
    constitution_yaml,
    load_constitution,
    moved,
    shares,
    starter,
    word_changes,
)
from cai.runs.folder import open_run, runs_meant
from cai.stats.formatting import counted

SEVERITIES = {"error": "red", "warning": "yellow", "hint": "cyan"}


def find_constitution(name: str, runs: Path | None) -> Path:
    """The file that a path, the name of a shipped file, or a run's name or folder stands for; CaiError for none."""
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


def start(path: Path, name: str) -> None:
    """Write a starter file."""
    write_new(path, starter(name))
    typer.echo(f"Wrote {path}. Edit it, then: cai constitution lint {path}")


def show_constitution(name: str, principle: str | None, runs: Path) -> None:
    """Print a constitution, or one principle of it."""
    path = find_constitution(name, runs)
    c = load_constitution(path)
    shown = c.principles if principle is None else [principles.find_principle(c.principles, principle, str(path))]
    console, share = Console(), shares(c)
    if principle is None:
        count = "one principle" if len(c.principles) == 1 else f"{len(c.principles)} principles"
        console.print(Text(f"{visible(c.name)}: {count}, fingerprint {c.fingerprint}", style="bold"))
        if c.description:
            console.print(Text(visible(c.description)))
        console.print(_overview(c, share))
    for p in shown:
        console.rule(Text(p.id, style="bold"), align="left")
        tags = f", tags {visible(', '.join(p.tags))}" if p.tags else ""
        tests = f", {len(p.tests)} test{'s' if len(p.tests) > 1 else ''}" if p.tests else ""
        weight = f"weight {p.weight:g}, {_percent(share[p.id])} of draws{tags}{tests}, fingerprint {p.fingerprint}"
        console.print(Text(weight, style="dim"))
        for field in (*TEXTS, "notes"):
            if text := getattr(p, field):
                console.print(Text(field, style="cyan"))
                console.print(Padding(Text(visible(text)), (0, 0, 0, 4), expand=False))
        console.print()


def _overview(c: Constitution, share: dict[str, float]) -> Table:
    table = Table(box=None, padding=(0, 1))
    for column in ("principle", "weight", "of draws", "fingerprint", "tags"):
        right = column in ("weight", "of draws")
        table.add_column(column, justify="right" if right else "left", no_wrap=column != "tags", overflow="fold")
    for p in c.principles:
        tags = Text(visible(", ".join(p.tags)))
        table.add_row(p.id, f"{p.weight:g}", _percent(share[p.id]), p.fingerprint, tags)
    return table


def _percent(share: float) -> str:
    return f"{100 * share:.{1 if share >= 0.001 or share == 0 else 4}f} %"


def compare_constitutions(a_name: str, b_name: str, as_json: bool, runs: Path) -> bool:
    """Print what differs between two constitutions; returns whether a run can tell them apart."""
    a, b = (load_constitution(find_constitution(name, runs)) for name in (a_name, b_name))
    difference = principles.diff(a, b)
    if as_json:
        typer.echo(json.dumps(_difference_as_json(a, b, difference), ensure_ascii=False, indent=2))
    else:
        console = Console()
        for label, name, c in (("A", a_name, a), ("B", b_name, b)):
            count = f"{len(c.principles)} principle{'s' if len(c.principles) > 1 else ''}"
            console.print(Text(f"{label}: {name}   ({visible(c.name)}, {count})", style="bold"), soft_wrap=True)
        _print_difference(console, a, b, difference)
    return any(difference)


def _by_id(c: Constitution) -> dict[str, Principle]:
    return {p.id: p for p in c.principles}


def _unseen(principle: Principle) -> tuple[Any, ...]:
    """What no run sees."""
    return principle.tags, principle.notes, principle.tests


def _reworded(before: Principle, after: Principle) -> dict[str, tuple[str, str]]:
    """The texts that differ, each as it was and as it is."""
    texts = {field: (getattr(before, field), getattr(after, field)) for field in TEXTS}
    return {field: both for field, both in texts.items() if both[0] != both[1]}


def _difference_as_json(a: Constitution, b: Constitution, difference: Difference) -> dict[str, Any]:
    before, after = _by_id(a), _by_id(b)
    reworded = {i: _reworded(before[i], after[i]).items() for i in difference.reworded}
    return {
        "equal": not any(difference),
        "added": difference.added,
        "removed": difference.removed,
        "reworded": {
            i: {field: {"before": old, "after": new, "changes": word_changes(old, new)} for field, (old, new) in texts}
            for i, texts in reworded.items()
        },
        "reweighted": {i: {"before": before[i].weight, "after": after[i].weight} for i in difference.reweighted},
        "asked_anew": moved(a, b)._asdict(),
    }


def _print_difference(console: Console, a: Constitution, b: Constitution, difference: Difference) -> None:
    before, after = _by_id(a), _by_id(b)
    share_a, share_b, asked = shares(a), shares(b), moved(a, b)
    for kind, ids, share in (("removed", difference.removed, share_a), ("added", difference.added, share_b)):
        for i in ids:
            console.print(Text.assemble((kind, COLOURS[kind]), f"  {i}  ({_percent(share[i])} of draws)"))
    for i in difference.reweighted:
        weights = f"{before[i].weight:g} → {after[i].weight:g}"
        draws = f"({_percent(share_a[i])} → {_percent(share_b[i])} of draws)"
        console.print(Text.assemble(("reweighted", "yellow"), f"  {i}  {weights}  {draws}"))
    for i in difference.reworded:
        console.print(Text.assemble(("reworded", "yellow"), f"  {i}"))
        for field, (old, new) in _reworded(before[i], after[i]).items():
            console.print(Text(f"  {field}", style="cyan"))
            console.print(Padding(marked(old, new), (0, 0, 0, 4), expand=False))
    if any(difference):
        revisions, judge = (_percent(share) for share in asked)
        anew = f"{revisions} of a round's critiques and revisions, {judge} of the judge's questions"
        console.print(Text(f"A run would ask anew {anew}."))
    else:
        console.print("Equal: the same principles, texts and weights.")
    aside = [f"the {field}" for field in ("name", "description") if getattr(a, field) != getattr(b, field)]
    aside += [i for i, p in before.items() if i in after and _unseen(p) != _unseen(after[i])]
    if aside:
        console.print(Text(f"Also different, and seen by no run: {', '.join(aside)}."))


def lint_constitutions(names: list[str], as_json: bool, strict: bool) -> bool:
    """Print all findings; returns whether there is none that fails.

    Raises: CaiError for the files that cannot be read, when all others are told.
    """
    findings: list[Finding] = []
    unread = []
    for name in names:
        try:
            findings += lint(find_constitution(name, None))
        except CaiError as error:
            unread.append(str(error))
    fail = {"error", "warning"} if strict else {"error"}
    if as_json:
        typer.echo(json.dumps([finding._asdict() for finding in findings], ensure_ascii=False, indent=2))
    else:
        _print_findings(findings, len(names) - len(unread))
    if unread:
        raise CaiError("\n".join(unread))
    return not any(finding.severity in fail for finding in findings)


def _print_findings(findings: list[Finding], files: int) -> None:
    console = Console()
    for f in findings:
        head = Text.assemble(
            (f"{f.file}:{f.line}: ", "bold"),
            (f.severity, SEVERITIES[f.severity]),
            f" {f.rule}",
            f" '{f.principle}'" if f.principle else "",
        )
        console.print(head, soft_wrap=True)
        console.print(Padding(Text(visible(f"{f.reason}; {f.suggestion}")), (0, 0, 0, 4), expand=False))
    counts = Counter(f.severity for f in findings)
    said = [f"{n} {kind}{'s' if n > 1 else ''}" for kind in ("error", "warning", "hint") if (n := counts[kind])]
    where = f"in {files} file{'s' if files > 1 else ''}"
    if files:
        console.print(Text(f"{', '.join(said) or 'Nothing found'} {where}"))


def import_constitution(file: Path, out: Path | None) -> None:
    """Write another's constitution as YAML, and say what had to be made up or left out."""
    name, c, notices = read_foreign(file)
    text = constitution_yaml(c, [f"Imported from {file.name}, in the format {name}.", *notices])
    _write_or_print(out, text, notices, f"{counted(len(c.principles), 'principles')} out of {file} ({name})")


def export_constitution(name: str, format: str, out: Path | None, runs: Path) -> None:
    """Write a constitution in another's format, and say what that could not hold."""
    c = load_constitution(find_constitution(name, runs))
    text, notices = write_foreign(c, format)
    _write_or_print(out, text, notices, f"{counted(len(c.principles), 'principles')} as {format}")


def _write_or_print(out: Path | None, text: str, notices: list[str], what: str) -> None:
    if out is None:
        typer.echo(text, nl=False)
    else:
        write_new(out, text)
        typer.echo(f"Wrote {out}: {what}")
    for notice in notices:
        typer.echo(f"note: {notice}", err=True)
