"""`cai attribute`."""

import json
from collections.abc import Iterator, Sequence
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.style import Style
from rich.text import Text

from cai.cli.console import (
    EFFECT,
    Grid,
    by_p,
    echo_json,
    effect_cells,
    heading,
    line,
    listed,
    result_console,
    short,
    show,
    starred,
    write_file,
)
from cai.cli.options import DEFAULT_RUNS, AsJson, PageOut, RunsFolder
from cai.compare.attribution import attribute as attribution_matrices
from cai.compare.record import Attribution
from cai.config.characters import visible
from cai.feedback.metrics import AFTER_WORDS, EDIT_DISTANCE, FILTERED, REVISION_TRUNCATED
from cai.report.comparison import attribution_report
from cai.runs.folder import open_sweep
from cai.stats.formatting import counted, mean_difference, number
from cai.stats.significance import Effect

PRINTED_EFFECTS = 8
PRINTED_WARNINGS = 6
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
    or `one-at-a-time`. Also writes a page, attribution.html in the sweep's folder; with --json only if --out names one.
    """
    folder = open_sweep(sweep, runs)
    matrices = attribution_matrices(folder)
    if as_json:
        echo_json(json.dumps([matrix.model_dump(mode="json") for matrix in matrices], ensure_ascii=False, indent=1))
    console = result_console()
    for part in (part for matrix in matrices if not as_json for part in _matrix(matrix, console.width)):
        show(console, part)
    if out is not None or not as_json:
        page = out or folder / "attribution.html"
        write_file(page, attribution_report(matrices))
        if not as_json:
            line(console, f"Report: {page}")


def _matrix(matrix: Attribution, width: int) -> Iterator[RenderableType | Grid]:
    varies = ", ".join(f"{key} {json.dumps(value)}" for key, value in matrix.varies.items())
    yield Text(visible(f"{matrix.sweep}, {matrix.how}{': ' + varies if varies else ''}"), style="bold")
    yield heading("Findings")
    yield listed("·", matrix.findings)
    if matrix.warnings:
        hidden = len(matrix.warnings) - PRINTED_WARNINGS
        more = [f"{counted(hidden, 'more warnings')}: --json"] if hidden > 0 else []
        yield heading("Warnings")
        yield listed("!", [*matrix.warnings[:PRINTED_WARNINGS], *more], "yellow")
    adds = "Effect of adding each principle to the others"
    yield heading(adds if matrix.how == "leave-one-out" else "Effect of each principle alone, less all together")
    grid = Grid(["", *matrix.outcomes, "prompts"], optional=_optional(list(matrix.outcomes)))
    means = (matrix.means.get(outcome) for outcome in matrix.outcomes)
    grid.add(*(Text(cell, style="dim") for cell in ("all principles", *(f"{number(mean)} " for mean in means))))
    for row in matrix.rows:
        cells = (_cell(row.effects.get(outcome)) for outcome in matrix.outcomes)
        grid.add(short(row.principle_id), *cells, str(row.shared))
    yield grid
    if matrix.tests:
        tests = f"{'all ' if matrix.tests > 1 else ''}{counted(matrix.tests, 'tests')}"
        legend = f"* significant at 5 %, corrected for {tests} (Holm); the deeper the colour, the surer"
        yield Text(f"  {legend}", style="dim")
    shown = set(grid.shown(width))
    columns = list(enumerate(matrix.outcomes.items(), start=1))
    yield from (Text(f"  {name}: {meaning}", style="dim") for place, (name, meaning) in columns if place in shown)
    effects = [(row.principle_id, name, effect) for row in matrix.rows for name, effect in row.effects.items()]
    surest = sorted((e for e in effects if e[2].low is not None), key=lambda e: by_p(e[2]))[:PRINTED_EFFECTS]
    if not surest:
        if effects:
            yield heading(f"No intervals: all {counted(len(effects), 'effects')} are on too few or equal prompts")
    else:
        yield heading(f"The {len(surest)} smallest p values of {counted(len(effects), 'effects')}, with intervals")
        grid = Grid(["", "outcome", *EFFECT, ""], optional=[5, 4], left=2, last_left=True)
        for principle, name, effect in surest:
            grid.add(short(principle), name, *effect_cells(effect), effect.note)
        yield grid
    yield Text("")


def _optional(outcomes: Sequence[str]) -> list[int]:
    """The columns that a narrow terminal leaves out: the prompts, then the outcomes of least interest."""
    least = (REVISION_TRUNCATED.name, FILTERED.name, AFTER_WORDS.name, EDIT_DISTANCE.name)
    return [len(outcomes) + 1, *(1 + outcomes.index(name) for name in least if name in outcomes)]


def _cell(effect: Effect | None) -> Text:
    """A difference on a ground of blue for less and vermillion for more, the deeper the surer."""
    if effect is None:
        return Text("– ", style="dim")
    text = starred(mean_difference(effect), effect)
    if effect.mean == 0 or effect.p is None:
        return Text(text, style="dim")
    share = min(1.0, abs(effect.mean / effect.se) / STRONG) if effect.se else 1.0  # the same for every prompt
    towards = MORE if effect.mean > 0 else LESS
    ground = [round(plain + share * (full - plain)) for plain, full in zip(PLAIN, towards, strict=True)]
    ink = "white" if share > 0.6 else "black"
    return Text(text, style=Style(color=ink, bgcolor="#{:02x}{:02x}{:02x}".format(*ground)))
