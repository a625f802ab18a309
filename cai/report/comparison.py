"""The pages of `cai compare` and `cai attribute`.

A comparison shows what is significant, each pair's metrics and principles, the runs' metrics and monitors side by side,
and every shared example. An attribution shows a map of effects and a table with intervals for each matrix of a sweep.
"""

import math
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

from cai.compare.compare import by_kind
from cai.compare.head_to_head import win_heading
from cai.compare.labels import label_flips_text
from cai.compare.record import (
    OUTCOMES,
    Attribution,
    Example,
    HeadToHead,
    PairComparison,
    PrincipleComparison,
    RunComparison,
)
from cai.compare.revisions import revision_notes, revision_row
from cai.config.errors import CaiError
from cai.constitution.principles import TEXTS
from cai.evaluation.monitors import Monitor, format_threshold
from cai.evaluation.policy_report import PolicyReport
from cai.evaluation.win_rates import Standing
from cai.feedback.metrics import RUN_METRICS
from cai.feedback.pairs import label_mass_text
from cai.inference.models import folder_fingerprint
from cai.report.examples import Examples, columns, comparison_table
from cai.report.html import Content, render_report
from cai.report.plots import (
    KL,
    LENGTH,
    LOSS,
    MAX_ERRORS,
    RUN_COLOURS,
    SCORE,
    Interval,
    Plot,
    Tile,
    curves,
    effect_map,
    intervals,
)
from cai.report.run import elo_plane
from cai.report.summary import MOST_HEADLINES, Card, configuration_files, provenance, read_summary
from cai.report.table import Detail, Table
from cai.runs.folder import RunFolder
from cai.stats.formatting import NONE, difference, estimate, mean_difference, number, percent
from cai.stats.significance import Effect

CURVE_TITLES = {"score": SCORE, "kl": KL, "length": LENGTH, "loss": LOSS}
SHOWN_TEXTS = {"last revision": "Last revisions", "trained policy": "Answers after training"}
MOST_SHOWN = 5  # examples on the first screen
MOST_REWORDED = 8  # principles whose texts are compared at once, the others behind a fold
ATTRIBUTION_TITLES = {
    "leave-one-out": "Effect of adding each principle to the others",
    "one-at-a-time": "Effect of each principle alone, relative to all together",
}


class MetricRow(NamedTuple):
    """A metric side by side: from where it warns, its value in every run, and the runs in which it warns."""

    name: str
    threshold: str
    values: list[str]
    warns: list[bool]


class PrincipleField(NamedTuple):
    """A field of a principle in both runs; empty in one that lacks the principle."""

    field: str
    a: str
    b: str


class OutcomeCell(NamedTuple):
    """An outcome of a principle: its means in both runs, and the difference with its interval."""

    a: str
    b: str
    effect: str
    significant: bool


class ComparisonContents(NamedTuple):
    """A comparison with the table of its examples, or the reason why there is none."""

    comparison: RunComparison
    folders: Sequence[RunFolder]
    table: Table
    missing: str


def read_comparison(comparison: RunComparison, folders: Sequence[RunFolder]) -> ComparisonContents:
    """Read the examples of compared runs; if a row cannot be read, the comparison stands without examples."""
    letters = [run.letter for run in comparison.runs]
    try:
        table = comparison_table(letters, [Examples(folder) for folder in folders])
        return ComparisonContents(comparison, folders, table, "")
    except CaiError as error:
        empty = Table(columns(letters), [], [], lambda i: Detail([]), lambda i, text: False)
        return ComparisonContents(comparison, folders, empty, f"The examples cannot be read: {error}")


def comparison_report(contents: ComparisonContents, url: str | None = None) -> str:
    """The HTML of a comparison; with `url`, as a page of `cai serve` that loads its examples from there."""
    c, folders, plots = contents.comparison, contents.folders, list[Plot]()

    def placed(drawn: Sequence[Plot]) -> list[int]:
        plots.extend(drawn)
        return list(range(len(plots) - len(drawn), len(plots)))

    manifests = [folder.manifest() for folder in folders]
    origins = [provenance(manifest) for manifest in manifests]
    keys = dict.fromkeys(key for origin in origins for key in origin)
    pair_plots = [placed(_pair_plots(c, pair)) for pair in c.pairs]
    axes_plots = placed(_axes_plots(folders, [run.letter for run in c.runs]))
    curve_plots = placed(_curve_plots(c))
    return render_report(
        "comparison.html.jinja",
        Content(contents.table, plots),
        url,
        c=c,
        headlines=_headlines(c),
        shown=examples_shown(c),
        missing=contents.missing,
        outcomes=OUTCOMES,
        pair_plots=pair_plots,
        axes=axes_plots,
        trained=curve_plots,
        run_metrics=run_metrics(folders),
        monitors=monitors(folders, [run.name for run in c.runs]),
        origins=[(key, [origin.get(key, NONE) for origin in origins]) for key in keys],
        files=[configuration_files(folder, manifest) for folder, manifest in zip(folders, manifests, strict=True)],
        texts=_texts,
        most_reworded=MOST_REWORDED,
        cells=_cells,
        label_mass=label_mass_text,
        label_flips=label_flips_text,
        win_heading=win_heading,
        revision_row=revision_row,
        revision_notes=revision_notes,
        text=lambda key, value: RUN_METRICS[key].text(value),
    )


def _headlines(c: RunComparison) -> list[Card]:
    """The metrics that differ significantly between runs, in at most MOST_HEADLINES values."""
    cards = []
    for pair in c.pairs:
        b = c.runs[pair.b].letter
        for metric in pair.metrics:
            if metric.effect.significant:
                values = " → ".join(RUN_METRICS[metric.key].text(value) for value in (metric.a, metric.b))
                cards.append(
                    Card(f"{metric.name}, A → {b}", values, f"{b} − A = {difference(metric.effect)}; significant")
                )
    return cards[:MOST_HEADLINES]


def examples_shown(c: RunComparison) -> list[dict[str, Any]]:
    """The examples of the first screen, as its script reads them: those of `PairComparison.examples`, a prompt once.

    The furthest apart of every pair's revisions, then of every pair's trained answers, then the next ones of each.
    """
    of_kinds = [[(pair, e) for e in pair.examples if e.what == what] for what in SHOWN_TEXTS for pair in c.pairs]
    by_prompt: dict[str, tuple[PairComparison, Example]] = {}
    for pair, example in filter(None, (found for turn in zip_longest(*of_kinds) for found in turn)):
        by_prompt.setdefault(example.prompt_id, (pair, example))
    return [
        {
            "id": example.prompt_id,
            "asked": example.messages[-1]["content"],
            "note": f"{SHOWN_TEXTS[example.what]}; {percent(example.change)} of the words differ",
            "names": [f"{run.letter}: {run.name}" for run in (c.runs[0], c.runs[pair.b])],
            "by": _asked_for(pair, example),
            "texts": [example.a, example.b],
        }
        for pair, example in list(by_prompt.values())[:MOST_SHOWN]
    ]


def _asked_for(pair: PairComparison, example: Example) -> list[list[str]]:
    """What the principles of A's and of B's revision ask for, a line each; of trained answers nothing."""
    if example.what != "last revision":
        return [[], []]
    texts_a, texts_b = ({p.id: text for p in pair.principles if (text := getattr(p, f"text_{x}"))} for x in "ab")
    return [
        [f"{i}: {texts[i].revision}" if i in texts else i for i in dict.fromkeys(ids)]
        for ids, texts in ((example.principles_a, texts_a), (example.principles_b, texts_b))
    ]


def run_metrics(folders: Sequence[RunFolder]) -> list[MetricRow]:
    """The rates for which a run's own report warns."""
    by_run = [{m.name: m for m in read_summary(folder, []).monitors} for folder in folders]
    first = {name: m for of_run in reversed(by_run) for name, m in of_run.items()}
    return [
        MetricRow(
            name,
            first[name].threshold,
            [of_run[name].value if name in of_run else NONE for of_run in by_run],
            [name in of_run and of_run[name].warns for of_run in by_run],
        )
        for name in dict.fromkeys(name for of_run in by_run for name in of_run)
    ]


def monitors(folders: Sequence[RunFolder], names: Sequence[str]) -> list[MetricRow]:
    """Reward-hacking monitors of each run's policy, by the evaluation in its own folder, or else in another's."""
    reports = [_policy_report(folder) for folder in folders]
    by_run = [
        _monitors_of(folder, name, [report, *(other for other in reports if other is not report)])
        for folder, name, report in zip(folders, names, reports, strict=True)
    ]
    thresholds: dict[str, dict[str, None]] = {}  # evaluations may have used different ones
    for monitor in (m for of_run in by_run for m in of_run.values() if m.value is not None):
        thresholds.setdefault(monitor.name, {})[format_threshold(monitor)] = None
    return [
        MetricRow(
            name,
            " or ".join(distinct),
            [_value(of_run.get(name)) for of_run in by_run],
            [name in of_run and of_run[name].state == "warns" for of_run in by_run],
        )
        for name, distinct in thresholds.items()
    ]


def _policy_report(folder: RunFolder, training: int = 1) -> PolicyReport | None:
    try:
        return folder.policy_report(training)
    except CaiError:  # the run's own page shows the error
        return None


def _monitors_of(folder: RunFolder, name: str, reports: Sequence[PolicyReport | None]) -> dict[str, Monitor]:
    """By name, from the first evaluation of the policy; of the policy as it is now, if its model is there."""
    model = folder.policy()
    content = folder_fingerprint(model) if model else None
    for report in filter(None, reports):
        policy = next((p for p in report.policies[1:] if p.name == name), None)
        if policy and content in (None, policy.model):
            return {m.name: m for m in report.monitors if m.policy == name}
    return {}


def _value(monitor: Monitor | None) -> str:
    return NONE if monitor is None or monitor.value is None else f"{estimate(monitor.value)} {monitor.state}"


def _texts(p: PrincipleComparison) -> list[PrincipleField]:
    """The texts of a principle that a model may see, its weight and where it applies, in both runs."""
    fields = (*TEXTS, "weight", "applies_to")
    a, b = ({f: _field(text, f) if text else "" for f in fields} for text in (p.text_a, p.text_b))
    return [PrincipleField(field, a[field], b[field]) for field in fields]


def _field(text: object, field: str) -> str:
    value = getattr(text, field)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _cells(p: PrincipleComparison) -> list[OutcomeCell]:
    """A cell per outcome."""
    cells = []
    for outcome in OUTCOMES:
        a, b = (number(use.means[outcome]) if use and outcome in use.means else NONE for use in (p.a, p.b))
        effect = p.effects.get(outcome)
        cells.append(OutcomeCell(a, b, difference(effect) if effect else "", effect is not None and effect.significant))
    return cells


def _pair_plots(c: RunComparison, pair: PairComparison) -> list[Plot]:
    b = c.runs[pair.b].letter
    plots = []
    scaled = [_scaled(f.name, f.effect) for f in pair.metrics]
    if known := [interval for interval in scaled if interval is not None]:
        plots.append(intervals(f"Metrics, {b} − A", "difference in standard errors", known, no_effect=0))
    wins = [
        Interval(_win_label(w), w.win_rate, w.effect.low + 0.5, w.effect.high + 0.5, w.effect.significant)
        for w in pair.head_to_head
        if w.effect.low is not None and w.effect.high is not None
    ]
    preferred = [
        Interval(revision_row(r), r.b, r.effect.low + 0.5, r.effect.high + 0.5, r.effect.significant)
        for r in (pair.revisions.preferences if pair.revisions else ())
        if r.effect.low is not None and r.effect.high is not None
    ]
    if preferred:
        title = f"P({b}'s revision better than A's), by one judge"
        plots.append(intervals(title, "mean over prompts", preferred, no_effect=0.5))
    if wins:
        plots.append(intervals(win_heading(pair.head_to_head[0], b), "share of prompts", wins, no_effect=0.5))
    measured = [p for p in pair.principles if any(map(_tile, p.effects.values()))]
    if measured:
        tiles = [[_tile(p.effects.get(outcome)) for outcome in OUTCOMES] for p in measured]
        names = [outcome.replace("_", " ") for outcome in OUTCOMES]
        plots.append(effect_map(f"Effects of principles, {b} − A", [p.id for p in measured], names, tiles))
    return plots


def _axes_plots(folders: Sequence[RunFolder], letters: Sequence[str]) -> list[Plot]:
    """The policies of all runs by what is helpful and what is safe, against the model that the first was trained from.

    Policies that were trained from another model have no place on this scale.
    """
    points: list[tuple[str, Standing]] = []
    reference = ""
    for folder, letter in zip(folders, letters, strict=True):
        for training in folder.trainings():
            report = _policy_report(folder, training.number)
            if report is None or len(report.standings) < 2 or reference not in ("", report.policies[0].model):
                continue
            if not reference:
                reference = report.policies[0].model
                points.append(("before training", report.standings[0]))
            points.append((training.label(letter), report.standings[1]))
    return elo_plane(points)


def _win_label(w: HeadToHead) -> str:
    """The prompts that a win rate covers."""
    return f"{w.axis}, {w.tag or 'all'}" if w.directly else w.tag or "all"


def _scaled(name: str, e: Effect) -> Interval | None:
    if not e.se or e.low is None or e.high is None:
        return None
    return Interval(name, e.mean / e.se, e.low / e.se, e.high / e.se, e.significant)


def _tile(e: Effect | None) -> Tile | None:
    """None where the prompts are too few for an interval."""
    if e is None or not e.se or e.low is None:
        return None
    return Tile(e.mean / e.se, mean_difference(e) + ("*" if e.significant else ""))


def _curve_plots(c: RunComparison) -> list[Plot]:
    """A plot per kind of stage and quantity, with a curve per run."""
    plots = []
    for (stage, name), group in by_kind(c.curves).items():
        series = {}
        for curve in group:
            letter = c.runs[curve.run].letter
            title = letter if letter not in series else f"{letter}, {curve.stage}"  # of two stages of one kind
            series[title] = list(zip(map(float, curve.steps), curve.values, strict=True))
        plots.append(curves(f"{stage}: {CURVE_TITLES.get(name, name)}", series, RUN_COLOURS))
    return plots


def attribution_report(matrices: Sequence[Attribution]) -> str:
    """The HTML of the matrices of one sweep."""
    content = Content(None, [_map(matrix) for matrix in matrices])
    return render_report("attribution.html.jinja", content, matrices=matrices, titles=ATTRIBUTION_TITLES)


def _map(matrix: Attribution) -> Plot:
    tiles = [[_attribution_tile(row.effects.get(outcome)) for outcome in matrix.outcomes] for row in matrix.rows]
    principles = [row.principle_id for row in matrix.rows]
    return effect_map(ATTRIBUTION_TITLES[matrix.how], principles, list(matrix.outcomes), tiles)


def _attribution_tile(effect: Effect | None) -> Tile | None:
    """None where nothing was measured or differs; a difference equal on all prompts has the strongest colour."""
    if effect is None or effect.mean == 0:
        return None
    errors = effect.mean / effect.se if effect.se else math.copysign(MAX_ERRORS, effect.mean)
    return Tile(errors, mean_difference(effect) + ("*" if effect.significant else ""))
