"""The report of one run: summary, principles, judge, monitors, policy evaluation, training, examples, configuration.

A part that cannot be read is replaced by a note with the error; the rest of the page stands.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from cai.config.errors import CaiError
from cai.config.yaml_files import as_yaml
from cai.constitution.principles import Constitution, Principle, shares
from cai.data.filters import FILTERS
from cai.data.records import Revision
from cai.evaluation.injection import HEADING as INJECTION_HEADING
from cai.evaluation.judge_report import JudgeReport, judge_metrics
from cai.evaluation.monitors import format_threshold
from cai.evaluation.policy_report import PolicyReport
from cai.evaluation.probe_metrics import PROBES, rates_to_report
from cai.evaluation.win_rates import PolicyComparison, Rating, Standing, format_dominated, format_elo
from cai.feedback.metrics import FILTERED, ROUND_METRICS, TIES, VERDICT_METRICS, PrincipleVerdict, PromptMeans
from cai.report.examples import COLUMNS, FACETS, Example, Examples, run_detail, run_line
from cai.report.html import Content, render_report
from cai.report.judge import JUDGE_JSON, read_judge_evaluation
from cai.report.plots import (
    Bounded,
    Interval,
    Plot,
    Point,
    bars,
    curves,
    histogram,
    intervals,
    logged_curves,
    plane,
    reliability,
)
from cai.report.summary import SummaryContents, configuration_files, provenance, read_summary
from cai.report.table import Detail, Table
from cai.runs.folder import RunFolder, stage_settings
from cai.runs.metrics import stage_folders
from cai.stats.formatting import NONE, estimate, number
from cai.training.tracking import read_metrics


class PrincipleMetrics(NamedTuple):
    """The metrics of one principle by key: ROUND_METRICS of its revisions, VERDICT_METRICS of its verdicts."""

    id: str
    principle: Principle | None  # None of one that rows name and the constitution lacks
    share: float | None  # of the draws, by its weight
    revisions: int
    of_revisions: dict[str, float]  # without the metrics that no row says anything about
    filters: Counter[str]  # revisions that fail each
    verdicts: int  # as the judge of a pair
    of_verdicts: dict[str, float]


class PrincipleTotals:
    """The metrics of principles, example by example, without keeping any text."""

    def __init__(self) -> None:
        self._rounds: dict[str, PromptMeans[Revision]] = {}
        self._verdicts: dict[str, PromptMeans[PrincipleVerdict]] = {}
        self._counts: Counter[tuple[str, str]] = Counter()  # of rounds and of verdicts, by principle
        self._filters: dict[str, Counter[str]] = {}

    def add(self, example: Example) -> None:
        """Count one example; verdicts of the eval judge are by another constitution, and not counted."""
        for row in example.revisions:
            self._rounds.setdefault(row.principle_id, PromptMeans(ROUND_METRICS)).add(row)
            self._counts["rounds", row.principle_id] += 1
            self._filters.setdefault(row.principle_id, Counter()).update(row.flags)
        for pair in (pair for pair in example.preferences if pair.source == "judge" and not pair.from_file):
            for verdict in pair.verdicts:
                of_principle = self._verdicts.setdefault(verdict.principle_id, PromptMeans(VERDICT_METRICS))
                of_principle.add(PrincipleVerdict(pair.prompt_id, verdict))
                self._counts["verdicts", verdict.principle_id] += 1

    def metrics(self, constitution: Constitution | None) -> list[PrincipleMetrics]:
        """In the order of the constitution; then principles that only rows name."""
        by_id = {p.id: p for p in constitution.principles} if constitution else {}
        share = shares(constitution) if constitution else {}
        ids = dict.fromkeys([*by_id, *self._rounds, *self._verdicts])
        return [
            PrincipleMetrics(
                id=i,
                principle=by_id.get(i),
                share=share.get(i),
                revisions=self._counts["rounds", i],
                of_revisions=self._rounds[i].means() if i in self._rounds else {},
                filters=self._filters.get(i, Counter()),
                verdicts=self._counts["verdicts", i],
                of_verdicts=self._verdicts[i].means() if i in self._verdicts else {},
            )
            for i in ids
        ]


OVERVIEW_PLOTS = 4
WIN_RATE_MARKS = ("interval excludes ½", "interval includes ½")


class Grid(NamedTuple):
    """A table of texts; `warns` marks rows."""

    title: str
    head: list[str]
    rows: list[list[str]]
    notes: list[str]
    warns: list[bool]


def evaluation_grids(report: PolicyReport) -> list[Grid]:
    """Every table of `cai eval`, in its order, if it has rows."""
    comparisons, probes = [*_against(report), _standings(report)], [*_probes(report), _injection(report)]
    grids = [*comparisons, *probes, *_monitors(report), *_scores(report)]
    return [grid for grid in grids if grid.rows]


def evaluation_plots(report: PolicyReport) -> list[Plot]:
    """Win rates by axis and tag, the two axes, gold and proxy reward by update: those that the evaluation has."""
    plots = []
    for policy, against in _pairs(report):
        rates = [
            i for row in report.comparisons if (row.policy, row.against) == (policy, against) for i in _interval(row)
        ]
        if rates:
            plots.append(intervals(f"{policy} vs {against}", "win rate", rates, no_effect=0.5, marks=WIN_RATE_MARKS))
    plots += elo_plane([(s.policy, s) for s in report.standings])
    for title, points_by_update in (
        ("Proxy reward during PPO: reward model score", [(c.last, c.proxy) for c in report.gold_vs_proxy]),
        ("Gold reward during PPO: win rate by the eval judge", [(c.last, c.gold) for c in report.gold_vs_proxy]),
    ):
        if known := [(float(update), value.mean) for update, value in points_by_update if value is not None]:
            plots.append(curves(title, {"mean": known}))
    return plots


def elo_plane(standings: Iterable[tuple[str, Standing]]) -> list[Plot]:
    """Policies, each with a name, on the two axes; no plot of fewer than two that are rated on both."""
    points = [
        Point(name, _on_axis(s.helpful), _on_axis(s.safe))
        for name, s in standings
        if s.helpful.elo is not None and s.safe.elo is not None
    ]
    title = "Helpful and safe, in Elo points (no bar: unbounded)"
    return [plane(title, ("helpful", "safe"), points)] if len(points) > 1 else []


def _pairs(report: PolicyReport) -> list[tuple[str, str]]:
    return list(dict.fromkeys((row.policy, row.against) for row in report.comparisons))


def _interval(row: PolicyComparison) -> Iterator[Interval]:
    rate = row.win_rate
    if rate is not None and rate.low is not None and rate.high is not None:
        name = f"{row.axis}, {row.tag}" if row.tag else row.axis
        significant = not row.note and not rate.low <= 0.5 <= rate.high
        yield Interval(name, rate.mean, rate.low, rate.high, significant=significant)


def _on_axis(rating: Rating) -> Bounded:
    return rating.elo or 0.0, rating.low, rating.high


def _grid(title: str, head: list[str], rows: list[list[str]], notes: Sequence[str] = ()) -> Grid:
    return Grid(title, head, rows, list(dict.fromkeys(filter(None, notes))), [False] * len(rows))


def _against(report: PolicyReport) -> Iterator[Grid]:
    head = ["axis", "tag", "prompts", "win rate", "length-controlled", "words, of both"]
    for policy, against in _pairs(report):
        rows = [row for row in report.comparisons if (row.policy, row.against) == (policy, against)]
        noted = any(row.note for row in rows)
        cells = []
        for row in rows:
            rates = [estimate(row.win_rate), estimate(row.length_controlled_win_rate)]
            words = ", ".join(number(mean, 1) for mean in row.words) if row.words else NONE
            cells.append([row.axis, row.tag or "all", str(row.prompts), *rates, words, *([row.note] if noted else [])])
        names = [*head, "note"] if noted else head
        reasons = [row.length_controlled_missing for row in rows if not row.tag]
        yield _grid(f"{policy} vs {against}", names, cells, reasons)


def _standings(report: PolicyReport) -> Grid:
    rows = [[s.policy, format_elo(s.helpful), format_elo(s.safe), format_dominated(s)] for s in report.standings]
    missing = [f"{s.policy}: {r.missing}" for s in report.standings for r in (s.helpful, s.safe) if r.missing]
    head = ["policy", "helpful", "safe", "better on both"]
    return _grid("Elo points against the reference", head, rows, missing)


def _probes(report: PolicyReport) -> Iterator[Grid]:
    names = [policy.name for policy in report.policies]
    rates = rates_to_report(report.probes, report.checks)
    for probe in dict.fromkeys(probe for probe, _, _ in rates):
        rows = [
            [group, what, *(estimate(by[name].rate if name in by else None) for name in names)]
            for (of, group, what), by in rates.items()
            if of == probe
        ]
        yield _grid(PROBES.get(probe, probe), ["group", "metric", *names], rows)


def _injection(report: PolicyReport) -> Grid:
    head = ["attack", "an answer that", "prompts", "gain in p", "p without", "p with"]
    rows = [[g.label, g.meaning, str(g.prompts), g.shown, number(g.before), number(g.after)] for g in report.injection]
    return _grid(INJECTION_HEADING, head, rows)


def _monitors(report: PolicyReport) -> Iterator[Grid]:
    head = ["monitor", "state", "value", "policy", "reference", "warns at", "meaning"]
    for policy in report.policies[1:]:
        monitors = [m for m in report.monitors if m.policy == policy.name]
        rows = []
        for m in monitors:
            values = [estimate(m.value), number(m.here), number(m.reference), format_threshold(m)]
            rows.append([m.name, m.state, *values, m.missing or m.meaning])
        grid = _grid(f"Reward-hacking monitors of {policy.name}", head, rows)
        yield grid._replace(warns=[m.state == "warns" for m in monitors])


def _scores(report: PolicyReport) -> Iterator[Grid]:
    kl = [[d.policy, estimate(d.answer), number(d.token), str(d.skipped)] for d in report.divergences if d.answer]
    missing = [f"{d.policy}: {d.missing}" for d in report.divergences if d.missing]
    yield _grid("KL from the reference, in nats", ["policy", "per answer", "per token", "skipped"], kl, missing)
    scored = [row for row in report.rewards if row.score is not None]
    scores = [[row.policy, estimate(row.score), estimate(row.gain), estimate(row.agrees)] for row in scored]
    head = ["policy", "score", "gain over the reference", "agreement with the eval judge"]
    yield _grid("Reward model on these answers", head, scores)
    stages = [
        [f"{c.first} to {c.last}", str(c.samples), estimate(c.proxy), number(c.kl), estimate(c.gold)]
        for c in report.gold_vs_proxy
    ]
    head = ["updates", "samples", "proxy reward", "KL", "win rate (gold)"]
    yield _grid("Gold and proxy reward during PPO", head, stages)


PartT = TypeVar("PartT")


class RunContents(NamedTuple):
    """A run as read once, with an error for each part that could not be read."""

    table: Table
    constitution: Constitution | None
    principles: list[PrincipleMetrics]
    missing: list[str]


class Stage(NamedTuple):
    """A training stage: its settings, its results in words, and the numbers of its plots."""

    name: str
    settings: str
    lines: list[str]
    plots: list[int]


def read_run(folder: RunFolder) -> RunContents:
    """Read every row of a run; where one cannot be read, there are no examples."""
    missing: list[str] = []
    constitution = _part("The constitution", folder.constitution, missing)
    examples = _part("The examples", lambda: _examples(folder), missing)
    empty = Table(COLUMNS, FACETS, [], lambda i: Detail([]), lambda i, text: False)
    table, totals = examples or (empty, PrincipleTotals())
    return RunContents(table, constitution, totals.metrics(constitution), missing)


def _examples(folder: RunFolder) -> tuple[Table, PrincipleTotals]:
    examples, totals, lines = Examples(folder), PrincipleTotals(), []
    for prompt_id in examples.ids:
        example = examples.read(prompt_id)
        lines.append(run_line(example))
        totals.add(example)

    def contains(prompt_id: str, text: str) -> bool:
        return examples.may_contain(prompt_id, text) and run_detail(examples.read(prompt_id)).contains(text)

    return Table(COLUMNS, FACETS, lines, lambda i: run_detail(examples.read(i)), contains), totals


def _part(name: str, read: Callable[[], PartT], missing: list[str]) -> PartT | None:
    """A part of a run; of one that cannot be read, the error goes to `missing`."""
    try:
        return read()
    except CaiError as error:
        missing.append(f"{name} cannot be read: {error}")
        return None


class _Plots:
    """The plots of a page, in order; a template refers to them by number."""

    def __init__(self) -> None:
        self.plots: list[Plot] = []

    def add(self, plots: Sequence[Plot]) -> list[int]:
        """Add plots; returns their numbers."""
        first = len(self.plots)
        self.plots += plots
        return list(range(first, len(self.plots)))


def run_report(folder: RunFolder, contents: RunContents, url: str | None = None) -> str:
    """The HTML of a run's report; with `url`, as a page of `cai serve` that loads its examples from there.

    Raises: CaiError for a run without a readable manifest.
    """
    manifest, missing = folder.manifest(), list(contents.missing)
    summary = read_summary(folder, missing)
    plots = _Plots()
    overview = plots.add(_overview_plots(contents))
    gate = _part("The judge gate", lambda: _gate(folder), missing)
    gate_plots = plots.add([_gate_plot(gate)] if gate else [])
    evaluated = _part("The policy evaluation", folder.policy_report, missing)
    evaluated_plots = plots.add(evaluation_plots(evaluated) if evaluated else [])
    measured = {key for principle in contents.principles for key in principle.of_verdicts}
    stages = [_stage(name, path, summary, plots, missing) for name, path in stage_folders(folder)]
    return render_report(
        "run.html.jinja",
        Content(contents.table, plots.plots),
        url,
        name=folder.name,
        model=str((manifest.get("config") or {}).get("model", "unknown")),
        provenance=provenance(manifest),
        notes=[*missing, *summary.notes],
        headlines=summary.headlines,
        trust=summary.trust,
        metrics=summary.metrics,
        principle_texts={p.id: p.revision for p in contents.constitution.principles} if contents.constitution else {},
        constitution=contents.constitution,
        principles=contents.principles,
        round_metrics=ROUND_METRICS,
        filters={name: text for name, text in FILTERS.items() if any(b.filters[name] for b in contents.principles)},
        verdict_metrics=[metric for metric in VERDICT_METRICS if metric != TIES or metric.key in measured],
        overview=[*overview, *evaluated_plots[:1]][:OVERVIEW_PLOTS],
        judge=summary.judge,
        gate=judge_metrics(gate) if gate else [],
        gate_notes=gate.notes if gate else [],
        gate_plots=gate_plots,
        evaluated=evaluation_grids(evaluated) if evaluated else [],
        evaluated_notes=evaluated.notes if evaluated else [],
        evaluated_plots=evaluated_plots,
        monitors=summary.monitors,
        stages=stages,
        policies=summary.policies,
        files=configuration_files(folder, manifest),
        skipped=summary.skipped,
    )


def _overview_plots(contents: RunContents) -> list[Plot]:
    plots = []
    column = {c.title: at for at, c in enumerate(COLUMNS)}

    def values(title: str) -> list[float]:
        return [v for line in contents.table.lines if isinstance(v := line.cells[column[title]], int | float)]

    drafts, revisions = values("draft words"), values("revision words")
    if drafts:
        longest = float(max(*drafts, *revisions))
        title = "Words per draft and last revision"
        plots.append(histogram(title, "words", {"draft": drafts, "revision": revisions}, 0, longest))
    probabilities = {"judge: P(chosen)": values("P(chosen)"), "eval judge: P(after)": values("P(after)")}
    known = {name: of_prompts for name, of_prompts in probabilities.items() if of_prompts}
    if known:
        plots.append(histogram("Labels of judge and eval judge", "probability", known, 0, 1))
    drawn = [b for b in contents.principles if b.revisions]
    if drawn:
        filtered = [round(b.of_revisions.get(FILTERED.key, 0.0) * b.revisions) for b in drawn]
        passed = [b.revisions - n for b, n in zip(drawn, filtered, strict=True)]
        parts = {"passes the filters": passed, "filtered": filtered}
        plots.append(bars("Revisions by principle", "revisions", [b.id for b in drawn], parts, stacked=True))
    return plots


def _stage(name: str, path: Path, summary: SummaryContents, plots: _Plots, missing: list[str]) -> Stage:
    """A training stage, its plots added to those of the page."""
    part = f"Stage {name}"
    drawn = _part(part, partial(stage_plots, name, path, summary.calibration.get(name)), missing) or []
    settings = _part(part, partial(stage_settings, path), missing)
    lines = summary.training.get(name, [])
    return Stage(name, as_yaml(settings) if settings else "", lines, plots.add(drawn))


def stage_plots(stage: str, path: Path, bins: list[dict[str, float]] | None) -> list[Plot]:
    """The curves of a stage's metrics.jsonl, and the calibration of its reward model."""
    logged = logged_curves(read_metrics(path / "metrics.jsonl"))
    plots = [curves(f"{stage}: {name}", {name: points}) for name, points in logged.items()]
    if bins:
        plots.append(reliability(f"{stage}: calibration on held-out pairs", {"reward model": bins}))
    return plots


def _gate(folder: RunFolder) -> JudgeReport | None:
    return read_judge_evaluation(folder.judge).report if (folder.judge / JUDGE_JSON).exists() else None


def _gate_plot(gate: JudgeReport) -> Plot:
    return reliability("Calibration on the gate's labelled pairs", {"judge": [b._asdict() for b in gate.reliability]})
