"""`cai constitution`: create, show, compare, lint, test, import and export constitutions."""

import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cai.cli.console import COLOURS, echo, echo_json, marked, write_new
from cai.cli.constitution_test import test
from cai.cli.help import HelpCommand
from cai.cli.options import (
    DEFAULT_RUNS,
    AsJson,
    ConstitutionFiles,
    PrincipleId,
    RunsFolder,
)
from cai.config.characters import Terminal, visible
from cai.config.errors import CaiError
from cai.constitution import principles
from cai.constitution.difference import Difference, changed_calls, principle_changes, word_changes
from cai.constitution.external import read_external, write_external
from cai.constitution.lint import Finding
from cai.constitution.lint import lint as lint_file
from cai.constitution.principles import (
    TEXTS,
    Constitution,
    Principle,
    constitution_yaml,
    load_constitution,
    shares,
    starter,
)
from cai.runs.find import find_constitution
from cai.stats.formatting import counted

SEVERITIES = {"error": "red", "warning": "yellow", "hint": "cyan"}

app = typer.Typer(
    help="Create, show, compare, lint and test constitutions.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)
Source = Annotated[
    str,
    typer.Argument(metavar="CONSTITUTION", help="YAML file, shipped constitution, or run."),
]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="FILE", help="File to write.", show_default="standard output")
]


@app.command(cls=HelpCommand)
def new(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="YAML file to write; must not exist.")],
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Name of the constitution.", show_default="the file's")
    ] = None,
) -> None:
    """Write a commented constitution of one principle to start from."""
    write_new(path, starter(name or path.stem))
    echo(f"Wrote {path}. Edit it, then: cai constitution lint {path}")


@app.command(cls=HelpCommand)
def show(constitution: Source, principle: PrincipleId = None, runs: RunsFolder = DEFAULT_RUNS) -> None:
    """Print principles, their weights and how often each is sampled."""
    _show(constitution, principle, runs)


@app.command(cls=HelpCommand)
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="YAML file, shipped constitution, or run.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The constitution to compare with A.")],
    as_json: AsJson = False,
    runs: RunsFolder = DEFAULT_RUNS,
) -> None:
    """Compare two constitutions, word by word.

    Also prints the share of a run's calls that changes. Exit status: 0 when no run is affected, 1 when they differ, 2
    when one cannot be read.
    """
    if _compare(a, b, as_json, runs):
        raise typer.Exit(1)


@app.command(cls=HelpCommand)
def lint(
    files: ConstitutionFiles,
    as_json: AsJson = False,
    strict: Annotated[bool, typer.Option("--strict", help="Fail on warnings too.")] = False,
) -> None:
    """Lint constitutions.

    docs/constitutions.md explains each rule. Exit status: 1 when there is an error, with --strict also for a warning,
    else 0; hints never fail; 2 when a file cannot be read.
    """
    if not _lint(files, as_json, strict):
        raise typer.Exit(1)


app.command(cls=HelpCommand)(test)


@app.command("import", cls=HelpCommand)
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSON file; the format is detected.")],
    out: Out = None,
) -> None:
    """Convert an external constitution to YAML.

    Reads Anthropic's critiques and revisions, Anthropic's judge instructions, and Hugging Face's constitutions.
    """
    format_name, constitution, notices = read_external(file)
    text = constitution_yaml(constitution, [f"Imported from {file.name}, in the format {format_name}.", *notices])
    count = counted(len(constitution.principles), "principles")
    _write_or_print(out, text, notices, f"{count} from {file} ({format_name})")


@app.command(cls=HelpCommand)
def export(
    constitution: Source,
    format: Annotated[
        str, typer.Option("--format", metavar="NAME", help="anthropic-critiques, anthropic-judge or huggingface.")
    ],
    out: Out = None,
    runs: RunsFolder = DEFAULT_RUNS,
) -> None:
    """Export a constitution to an external format.

    A note lists what the format cannot hold.
    """
    loaded = load_constitution(find_constitution(constitution, runs))
    text, notices = write_external(loaded, format)
    _write_or_print(out, text, notices, f"{counted(len(loaded.principles), 'principles')} as {format}")


def _show(name: str, principle: str | None, runs: Path) -> None:
    """Print a constitution, or one principle of it."""
    path = find_constitution(name, runs)
    c = load_constitution(path)
    shown = c.principles if principle is None else [principles.find_principle(c.principles, principle, str(path))]
    console, share = Terminal(), shares(c)
    if principle is None:
        count = counted(len(c.principles), "principles")
        console.print(Text(f"{visible(c.name)}: {count}, fingerprint {c.fingerprint}", style="bold"))
        if c.description:
            console.print(Text(visible(c.description)))
        console.print(_overview(c, share))
    for p in shown:
        console.rule(Text(p.id, style="bold"), align="left")
        tags = f", tags {visible(', '.join(p.tags))}" if p.tags else ""
        tests = f", {len(p.tests)} test{'s' if len(p.tests) > 1 else ''}" if p.tests else ""
        weight = f"weight {p.weight:g}, sampled {_percent(share[p.id])}{tags}{tests}, fingerprint {p.fingerprint}"
        console.print(Text(weight, style="dim"))
        if p.applies_to is not None:
            console.print(Text(f"applies to {visible(str(p.applies_to))}", style="dim"))
        for field in (*TEXTS, "notes"):
            if text := getattr(p, field):
                console.print(Text(field, style="cyan"))
                console.print(Padding(Text(visible(text)), (0, 0, 0, 4), expand=False))
        console.print()


def _overview(c: Constitution, share: dict[str, float]) -> Table:
    table = Table(box=None, padding=(0, 1))
    for column in ("principle", "weight", "sampled", "fingerprint", "tags"):
        right = column in ("weight", "sampled")
        table.add_column(column, justify="right" if right else "left", no_wrap=column != "tags", overflow="fold")
    for p in c.principles:
        tags = Text(visible(", ".join(p.tags)))
        table.add_row(p.id, f"{p.weight:g}", _percent(share[p.id]), p.fingerprint, tags)
    return table


def _percent(share: float) -> str:
    return f"{100 * share:.{1 if share >= 0.001 or share == 0 else 4}f} %"


def _compare(a_name: str, b_name: str, as_json: bool, runs: Path) -> bool:
    """Print how two constitutions differ; returns whether a run can differ."""
    a, b = (load_constitution(find_constitution(name, runs)) for name in (a_name, b_name))
    difference = principle_changes(a, b)
    if as_json:
        echo_json(json.dumps(_difference_as_json(a, b, difference), ensure_ascii=False, indent=2))
    else:
        console = Terminal()
        for label, name, c in (("A", a_name, a), ("B", b_name, b)):
            count = counted(len(c.principles), "principles")
            console.print(Text(f"{label}: {name}   ({visible(c.name)}, {count})", style="bold"), soft_wrap=True)
        _print_difference(console, a, b, difference)
    return any(difference)


def _by_id(c: Constitution) -> dict[str, Principle]:
    return {p.id: p for p in c.principles}


def _without_effect(principle: Principle) -> tuple[Any, ...]:
    """The fields that have no effect on a run."""
    return principle.tags, principle.notes, principle.tests


def _reworded(before: Principle, after: Principle) -> dict[str, tuple[str, str]]:
    """The texts that differ, before and after."""
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
        "rescoped": {i: {"before": _where(before[i]), "after": _where(after[i])} for i in difference.rescoped},
        "changed_calls": changed_calls(a, b)._asdict(),
    }


def _where(principle: Principle) -> dict[str, Any] | None:
    return principle.applies_to.model_dump() if principle.applies_to is not None else None


def _print_difference(console: Console, a: Constitution, b: Constitution, difference: Difference) -> None:
    before, after = _by_id(a), _by_id(b)
    share_a, share_b, changed = shares(a), shares(b), changed_calls(a, b)
    for kind, ids, share in (("removed", difference.removed, share_a), ("added", difference.added, share_b)):
        for i in ids:
            console.print(Text.assemble((kind, COLOURS[kind]), f"  {i}  (sampled {_percent(share[i])})"))
    for i in difference.reweighted:
        weights = f"{before[i].weight:g} → {after[i].weight:g}"
        sampled = f"(sampled {_percent(share_a[i])} → {_percent(share_b[i])})"
        console.print(Text.assemble(("reweighted", "yellow"), f"  {i}  {weights}  {sampled}"))
    for i in difference.rescoped:
        where = (visible(str(p.applies_to or "all prompts")) for p in (before[i], after[i]))
        console.print(Text.assemble(("rescoped", "yellow"), f"  {i}  applies to {' → '.join(where)}"))
    for i in difference.reworded:
        console.print(Text.assemble(("reworded", "yellow"), f"  {i}"))
        for field, (old, new) in _reworded(before[i], after[i]).items():
            console.print(Text(f"  {field}", style="cyan"))
            console.print(Padding(marked(old, new), (0, 0, 0, 4), expand=False))
    if any(difference):
        critiques, revisions, judge = (_percent(share) for share in changed)
        console.print(Text(f"New calls: {critiques} of critiques, {revisions} of revisions, {judge} of verdicts,"))
        console.print("and those about answers that come out otherwise (new revisions, later rounds).")
        if any(p.applies_to for c in (a, b) for p in c.principles):
            console.print("On prompts that all principles apply to; cai run --dry-run counts a run's calls.")
    else:
        console.print("Equal: same principles, texts, weights and applies_to.")
    without_effect = [f"the {field}" for field in ("name", "description") if getattr(a, field) != getattr(b, field)]
    without_effect += [i for i, p in before.items() if i in after and _without_effect(p) != _without_effect(after[i])]
    if without_effect:
        console.print(Text(f"Other changes, without effect on a run: {', '.join(without_effect)}."))


def _lint(names: list[str], as_json: bool, strict: bool) -> bool:
    """Print all findings; returns whether none of them fails.

    Raises: CaiError for the files that cannot be read, after the findings of the others.
    """
    findings: list[Finding] = []
    unread = []
    for name in names:
        try:
            findings += lint_file(find_constitution(name, None))
        except CaiError as error:
            unread.append(str(error))
    fail = {"error", "warning"} if strict else {"error"}
    if as_json:
        echo_json(json.dumps([finding._asdict() for finding in findings], ensure_ascii=False, indent=2))
    else:
        _print_findings(findings, len(names) - len(unread))
    if unread:
        raise CaiError("\n".join(unread))
    return not any(finding.severity in fail for finding in findings)


def _print_findings(findings: list[Finding], files: int) -> None:
    console = Terminal()
    for f in findings:
        head = Text.assemble(
            (f"{f.file}:{f.line}: ", "bold"),
            (f.severity, SEVERITIES[f.severity]),
            f" {f.rule}",
            f" '{f.principle}'" if f.principle else "",
        )
        console.print(head, soft_wrap=True)
        console.print(Padding(Text(visible(_advice(f))), (0, 0, 0, 4), expand=False))
    counts = Counter(f.severity for f in findings)
    totals = [f"{n} {kind}{'s' if n > 1 else ''}" for kind in ("error", "warning", "hint") if (n := counts[kind])]
    where = f"in {files} file{'s' if files > 1 else ''}"
    if files:
        console.print(Text(f"{', '.join(totals) or 'No findings'} {where}"))


def _advice(finding: Finding) -> str:
    """Why a finding is one, and what to do, in one line."""
    reason, suggestion = finding.reason, finding.suggestion
    if reason.endswith("?"):
        return f"{reason} {suggestion[:1].upper()}{suggestion[1:]}"
    return f"{reason}; {suggestion}"


def _write_or_print(out: Path | None, text: str, notices: list[str], what: str) -> None:
    if out is None:
        typer.echo(text, nl=False)
    else:
        write_new(out, text)
        echo(f"Wrote {out}: {what}")
    for notice in notices:
        echo(f"note: {notice}", err=True)
