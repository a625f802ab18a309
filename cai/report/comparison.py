"""What is watched in compared runs, side by side: rates of their summaries, and what `cai eval` found."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from cai.compare.compare import by_kind
from cai.compare.findings import number, told
from cai.compare.record import OUTCOMES, Attribution, PairComparison, PrincipleComparison, RunComparison, Wins
from cai.config.errors import CaiError
from cai.constitution.principles import TEXTS
from cai.evaluation.monitors import Monitor, bound_told
from cai.evaluation.policy_report import PolicyReport
from cai.inference.models import folder_fingerprint
from cai.report.examples import Examples, columns, comparison_table
from cai.report.html import report
from cai.report.plots import COMPARED, Interval, Plot, Tile, curves, effect_map, intervals
from cai.report.summary import configuration_files, made_of, told_of
from cai.report.table import Detail, Table
from cai.runs.folder import RunFolder
from cai.stats.formatting import estimate
from cai.stats.significance import Effect

NONE = "–"


class Watched(NamedTuple):
    """A figure, from where to look, its value in every run, and the runs in which it is past that."""

    name: str
    bound: str
    values: list[str]
    look: list[bool]


def rates(folders: Sequence[RunFolder]) -> list[Watched]:
    """The rates that a run's own report watches."""
    of_runs = [{m.name: m for m in told_of(folder, []).monitors} for folder in folders]
    first = {name: m for of_run in reversed(of_runs) for name, m in of_run.items()}
    return [
        Watched(
            name,
            first[name].bound,
            [of_run[name].value if name in of_run else NONE for of_run in of_runs],
            [name in of_run and of_run[name].look for of_run in of_runs],
        )
        for name in dict.fromkeys(name for of_run in of_runs for name in of_run)
    ]


def signs(folders: Sequence[RunFolder], names: Sequence[str]) -> list[Watched]:
    """The signs of reward hacking in each run's policy, by the evaluation in its own folder, or else in another's."""
    reports = [_report(folder) for folder in folders]
    of_runs = [
        _monitors(folder, name, [report, *(other for other in reports if other is not report)])
        for folder, name, report in zip(folders, names, reports, strict=True)
    ]
    bounds: dict[str, dict[str, None]] = {}  # the bound may lie on either side
    for monitor in (m for of_run in of_runs for m in of_run.values() if m.value is not None):
        bounds.setdefault(monitor.name, {})[bound_told(monitor)] = None
    return [
        Watched(
            name,
            " or ".join(told),
            [_value(of_run.get(name)) for of_run in of_runs],
            [name in of_run and of_run[name].state == "warns" for of_run in of_runs],
        )
        for name, told in bounds.items()
    ]


def _report(folder: RunFolder) -> PolicyReport | None:
    try:
        return folder.policy_report()
    except CaiError:  # the run's own page names it
        return None


def _monitors(folder: RunFolder, name: str, reports: Sequence[PolicyReport | None]) -> dict[str, Monitor]:
    """Of the policy as it is now, where its model is there to tell."""
    model = folder.policy()
    content = folder_fingerprint(model) if model else None
    for evaluated in filter(None, reports):
        policy = next((p for p in evaluated.policies[1:] if p.name == name), None)
        if policy and content in (None, policy.model):
            return {m.name: m for m in evaluated.monitors if m.policy == name}
    return {}


def _value(monitor: Monitor | None) -> str:
    return NONE if monitor is None or monitor.value is None else f"{estimate(monitor.value)} {monitor.state}"


# Compared runs as a page: what is significant, the constitutions beside the behaviour, every shared example.


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
    significant: bool


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
    manifests = [folder.manifest() for folder in found.folders]
    made = [made_of(manifest) for manifest in manifests]
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
        files=[
            configuration_files(folder, manifest) for folder, manifest in zip(found.folders, manifests, strict=True)
        ],
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
        cells.append(Cell(a, b, told(effect) if effect else "", effect is not None and effect.significant))
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
            w.effect.significant,
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
    return Interval(name, e.mean / e.se, e.low / e.se, e.high / e.se, e.significant)


def _tile(e: Effect | None) -> Tile | None:
    """None where the prompts are too few to say anything."""
    if e is None or not e.se or e.low is None:
        return None
    return Tile(e.mean / e.se, number(e.mean, "+") + ("*" if e.significant else ""))


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


# What each principle of a sweep does, as a page: a map of effects and a table with intervals for each matrix.


SURE = 4.0  # standard errors, where the map's colours end
WHAT = {
    "leave-one-out": "What each principle adds to the others",
    "one-at-a-time": "What each principle does alone, less all of them together",
}


def attribution_report(found: Sequence[Attribution]) -> str:
    """The HTML of the matrices of one sweep."""
    plots = [_map(matrix) for matrix in found]
    return report("attribution.html.jinja", None, plots, matrices=found, what=WHAT, told=told, number=number)


def _map(found: Attribution) -> Plot:
    tiles = [[_attribution_tile(row.effects.get(outcome)) for outcome in found.outcomes] for row in found.rows]
    return effect_map(WHAT[found.how], [row.principle_id for row in found.rows], list(found.outcomes), tiles)


def _attribution_tile(effect: Effect | None) -> Tile | None:
    """None where nothing was measured, or differs; a difference that is the same for every prompt is as sure as any."""
    if effect is None or effect.mean == 0:
        return None
    errors = effect.mean / effect.se if effect.se else math.copysign(SURE, effect.mean)
    return Tile(errors, number(effect.mean, "+") + ("*" if effect.significant else ""))
