"""Compared runs as a page: what is established, the constitutions beside the behaviour, every shared example."""

from collections.abc import Sequence
from typing import NamedTuple

from cai.constitution import TEXTS
from cai.errors import CaiError
from cai.evaluation.effects import Effect
from cai.report.comparison_table import columns, comparison_table
from cai.report.configuration import configuration_files, made_of
from cai.report.examples import Examples
from cai.report.html import report
from cai.report.monitoring import rates, signs
from cai.report.plots import COMPARED, Interval, Plot, Tile, curves, effect_map, intervals
from cai.report.table import Detail, Table
from cai.runs.comparison.curves import by_kind
from cai.runs.comparison.findings import number, told
from cai.runs.comparison.record import OUTCOMES, PairComparison, PrincipleComparison, RunComparison, Wins
from cai.runs.folder import RunFolder

CURVES = {
    "score": "score of the reward model",
    "kl": "KL, nats an answer",
    "length": "tokens an answer",
    "loss": "loss",
}


class Text(NamedTuple):
    """A field of a principle in both runs; empty in one that lacks the principle."""

    field: str
    a: str
    b: str


class Cell(NamedTuple):
    """An outcome of a principle: its means in both runs, and the difference with its interval."""

    a: str
    b: str
    effect: str
    established: bool


class Together(NamedTuple):
    """A comparison with the table of its examples, or why there is none."""

    comparison: RunComparison
    folders: Sequence[RunFolder]
    table: Table
    missing: str


def together(comparison: RunComparison, folders: Sequence[RunFolder]) -> Together:
    """Read the examples of compared runs; where a row is damaged the comparison stands without them."""
    letters = [run.letter for run in comparison.runs]
    try:
        return Together(comparison, folders, comparison_table(letters, [Examples(folder) for folder in folders]), "")
    except CaiError as error:
        none = Table(columns(letters), [], [], lambda i: Detail([]), lambda i, text: False)
        return Together(comparison, folders, none, f"The examples cannot be shown: {error}")


def comparison_report(found: Together, url: str | None = None) -> str:
    """The HTML of a comparison."""
    c, plots = found.comparison, list[Plot]()

    def drawn(plot: Plot | None) -> list[int]:
        plots.extend([plot] if plot is not None else [])
        return [len(plots) - 1] if plot is not None else []

    of_pairs = [[at for plot in _pair_plots(c, pair) for at in drawn(plot)] for pair in c.pairs]
    trained = [at for plot in _curve_plots(c) for at in drawn(plot)]
    locks = [folder.lock() for folder in found.folders]
    made = [made_of(lock) for lock in locks]
    return report(
        "comparison.html.jinja",
        found.table,
        plots,
        url,
        c=c,
        missing=found.missing,
        outcomes=OUTCOMES,
        pair_plots=of_pairs,
        trained=trained,
        rates=rates(found.folders),
        signs=signs(found.folders, [run.name for run in c.runs]),
        made=[(key, [own.get(key, "–") for own in made]) for key in dict.fromkeys(key for own in made for key in own)],
        files=[configuration_files(folder, lock) for folder, lock in zip(found.folders, locks, strict=True)],
        texts=_texts,
        cells=_cells,
        number=number,
        told=told,
    )


def _texts(p: PrincipleComparison) -> list[Text]:
    """The texts of a principle that a model may see, and its weight, in both runs."""
    fields = (*TEXTS, "weight")
    a, b = ({f: _field(text, f) if text else "" for f in fields} for text in (p.text_a, p.text_b))
    return [Text(field, a[field], b[field]) for field in fields]


def _field(text: object, field: str) -> str:
    value = getattr(text, field)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _cells(p: PrincipleComparison) -> list[Cell]:
    """What the principle did, an outcome each."""
    cells = []
    for outcome in OUTCOMES:
        a, b = (number(use.means[outcome]) if use and outcome in use.means else "–" for use in (p.a, p.b))
        effect = p.effects.get(outcome)
        cells.append(Cell(a, b, told(effect) if effect else "", effect is not None and effect.established))
    return cells


def _of(w: Wins) -> str:
    """The prompts that a share of wins is of."""
    return f"{w.axis}, {w.tag or 'all'}" if w.directly else w.tag or "all"


def _pair_plots(c: RunComparison, pair: PairComparison) -> list[Plot]:
    b = c.runs[pair.b].letter
    plots = []
    figures = [_scaled(f.name, f.effect) for f in pair.figures]
    if shown := [interval for interval in figures if interval is not None]:
        plots.append(intervals(f"Figures, {b} − A", "standard errors from no difference", shown, even=0))
    wins = [
        Interval(
            _of(w),
            w.share,
            w.effect.low + 0.5,
            w.effect.high + 0.5,
            w.effect.established,
        )
        for w in pair.wins
        if w.effect.low is not None and w.effect.high is not None
    ]
    if wins:
        plots.append(
            intervals(f"{b} better than A, by tag", f"share of held-out prompts that {b} wins", wins, even=0.5)
        )
    met = [p for p in pair.principles if any(map(_tile, p.effects.values()))]
    if met:
        tiles = [[_tile(p.effects.get(outcome)) for outcome in OUTCOMES] for p in met]
        names = [outcome.replace("_", " ") for outcome in OUTCOMES]
        plots.append(effect_map(f"Effects of principles, {b} − A", [p.id for p in met], names, tiles))
    return plots


def _scaled(name: str, e: Effect) -> Interval | None:
    if not e.se or e.low is None or e.high is None:
        return None
    return Interval(name, e.mean / e.se, e.low / e.se, e.high / e.se, e.established)


def _tile(e: Effect | None) -> Tile | None:
    """None where the prompts are too few to say anything."""
    if e is None or not e.se or e.low is None:
        return None
    return Tile(e.mean / e.se, number(e.mean, "+") + ("*" if e.established else ""))


def _curve_plots(c: RunComparison) -> list[Plot]:
    """The runs' curves of one kind of stage in one plot each."""
    plots = []
    for (stage, name), group in by_kind(c.curves).items():
        series = {}
        for curve in group:
            letter = c.runs[curve.run].letter
            title = letter if letter not in series else f"{letter}, {curve.stage}"  # of two stages of one kind
            series[title] = list(zip(map(float, curve.steps), curve.values, strict=True))
        plots.append(curves(f"{stage}: {CURVES.get(name, name)}", series, COMPARED))
    return plots
