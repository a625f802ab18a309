"""`cai attribute`."""

import json
from collections.abc import Iterator
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from cai.cli.console import line, write_file
from cai.cli.effects import EFFECT, columns, effect_cells, hundred_columns, listed, short, show, starred
from cai.cli.options import DEFAULT_RUNS, AsJson, PageOut, RunsFolder
from cai.compare.attribution import attribute as attribution_matrices
from cai.compare.findings import number
from cai.compare.record import Attribution
from cai.config.characters import visible
from cai.report.comparison import attribution_report
from cai.runs.folder import open_sweep
from cai.stats.significance import Effect

PRINTED_EFFECTS = 8
PRINTED_NOTES = 6
STRONG = 3.0  # standard errors, from which a cell has its full colour
LESS, MORE, PLAIN = (0, 114, 178), (213, 94, 0), (255, 255, 255)  # Okabe & Ito 2008, as in the report's plots


def attribute(
    sweep: Annotated[str, typer.Argument(metavar="SWEEP", help="Name or folder of a sweep over principles.")],
    as_json: AsJson = False,
    out: PageOut = None,
    runs: RunsFolder = DEFAULT_RUNS,
) -> None:
    """Measure the effect of each principle in a sweep.

    Prints a matrix of principles and outcomes with what is significant, for a sweep with `principles: leave-one-out`
    or `alone`. Also writes a page, attribution.html in the sweep's folder; with --json only if --out names one.
    """
    folder = open_sweep(sweep, runs)
    found = attribution_matrices(folder)
    if as_json:
        typer.echo(json.dumps([matrix.model_dump(mode="json") for matrix in found], ensure_ascii=False, indent=1))
    console = hundred_columns()
    for part in (part for matrix in found if not as_json for part in _matrix(matrix)):
        show(console, part)
    if out is not None or not as_json:
        page = out or folder / "attribution.html"
        write_file(page, attribution_report(found))
        if not as_json:
            line(console, f"Written to {page}")


def _matrix(found: Attribution) -> Iterator[RenderableType]:
    varies = ", ".join(f"{key} {json.dumps(value)}" for key, value in found.varies.items())
    yield Text(visible(f"{found.sweep}, {found.how}{': ' + varies if varies else ''}"), style="bold")
    more = [f"{len(found.notes) - PRINTED_NOTES} more: --json"] if len(found.notes) > PRINTED_NOTES else []
    if found.notes:
        yield listed("note:", [*found.notes[:PRINTED_NOTES], *more], "yellow")
    yield Text("\nIn short", style="bold")
    yield listed("·", found.findings)
    what = "the principle adds" if found.how == "leave-one-out" else "it does alone, less all together"
    yield Text(f"\nWhat {what}", style="bold")
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for outcome in found.outcomes:
        table.add_column(outcome, justify="right", no_wrap=True)
    table.add_column("prompts", justify="right", no_wrap=True)
    table.add_row(Text("all principles", style="dim"), *(_mean(found, outcome) for outcome in found.outcomes))
    for row in found.rows:
        table.add_row(
            Text(visible(short(row.principle_id))),
            *(_cell(row.effects.get(outcome)) for outcome in found.outcomes),
            str(row.shared),
        )
    yield table
    yield Text("* significant among the principles of its column (Holm); the deeper a colour the surer", style="dim")
    yield from (Text(f"  {name}: {meaning}", style="dim") for name, meaning in found.outcomes.items())
    effects = [(row.principle_id, name, effect) for row in found.rows for name, effect in row.effects.items()]
    surest = sorted((e for e in effects if e[2].low is not None), key=lambda e: e[2].p or 0.0)[:PRINTED_EFFECTS]
    if not surest:
        few = f"\nWith intervals, none of {len(effects)}: all come of too few or equal prompts\n"
        yield Text(few if effects else "", style="bold")
        return
    yield Text(f"\nWith intervals, {len(surest)} of {len(effects)}, the surest", style="bold")
    table = columns("", "outcome", *EFFECT)
    for principle, name, effect in surest:
        table.add_row(Text(visible(short(principle))), name, *effect_cells(effect))
    yield table
    yield Text("")


def _mean(found: Attribution, outcome: str) -> Text:
    return Text(number(found.means[outcome]) + " " if outcome in found.means else "", style="dim")


def _cell(effect: Effect | None) -> Text:
    """A difference on a ground of blue for less and vermillion for more, the deeper the surer."""
    if effect is None:
        return Text("– ", style="dim")
    text = starred(number(effect.mean, "+"), effect)
    if effect.mean == 0 or effect.p is None:
        return Text(text, style="dim")
    share = min(1.0, abs(effect.mean / effect.se) / STRONG) if effect.se else 1.0  # the same for every prompt
    towards = MORE if effect.mean > 0 else LESS
    ground = [round(plain + share * (full - plain)) for plain, full in zip(PLAIN, towards, strict=True)]
    ink = "white" if share > 0.6 else "black"
    return Text(text, style=Style(color=ink, bgcolor="#{:02x}{:02x}{:02x}".format(*ground)))
