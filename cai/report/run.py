"""What each principle of a run did: the constitution beside the behaviour."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from cai.config.errors import CaiError
from cai.constitution.principles import Constitution, Principle, shares
from cai.data.records import Revision
from cai.evaluation.judge_report import JudgeReport, figures
from cai.evaluation.monitors import bound_told
from cai.evaluation.policy_report import PolicyReport
from cai.evaluation.probe_metrics import PROBES, told_rates
from cai.evaluation.win_rates import Against, Rating, dominated_told, elo_told
from cai.feedback.metrics import ROUND_METRICS, VERDICT_METRICS, PrincipleVerdict, PromptMeans
from cai.report.examples import COLUMNS, FACETS, Example, Examples, run_detail, run_line
from cai.report.html import report
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
from cai.report.summary import as_yaml, configuration_files, made_of, told_of
from cai.report.table import Detail, Table
from cai.runs.folder import RunFolder, stage_order, stage_settings
from cai.stats.formatting import estimate, number, percent
from cai.training.metrics import read_metrics


class Behaviour(NamedTuple):
    """What one principle did; a figure without rows to tell it is None, rates are in [0, 1]."""

    id: str
    principle: Principle | None  # None of one that rows name and the constitution does not hold
    share: float | None  # of the draws, by its weight
    revisions: int
    flagged: float | None  # of its revisions, by hygiene
    changed: float | None  # words that differ between the answer before and the revision
    longer: float | None  # words that the revision has more
    verdicts: int  # as the judge of a pair
    sure: float | None  # mean probability of the answer it prefers
    position_bias: float | None
    non_option_mass: float | None


class Tally:
    """What the principles did, example by example, without keeping any text."""

    def __init__(self) -> None:
        self._rounds: dict[str, PromptMeans[Revision]] = {}
        self._verdicts: dict[str, PromptMeans[PrincipleVerdict]] = {}
        self._counts: Counter[tuple[str, str]] = Counter()  # of rounds and of verdicts, by principle

    def add(self, example: Example) -> None:
        """Count an example in; the verdicts of the eval judge are not the constitution's."""
        for row in example.revisions:
            self._rounds.setdefault(row.principle_id, PromptMeans(ROUND_METRICS)).add(row)
            self._counts["rounds", row.principle_id] += 1
        for pair in (pair for pair in example.preferences if pair.source == "judge"):
            for verdict in pair.verdicts:
                of_principle = self._verdicts.setdefault(verdict.principle_id, PromptMeans(VERDICT_METRICS))
                of_principle.add(PrincipleVerdict(pair.prompt_id, verdict))
                self._counts["verdicts", verdict.principle_id] += 1

    def behaviours(self, constitution: Constitution | None) -> list[Behaviour]:
        """In the order of the constitution; then principles that only the rows know."""
        of_id = {p.id: p for p in constitution.principles} if constitution else {}
        share = shares(constitution) if constitution else {}
        ids = dict.fromkeys([*of_id, *self._rounds, *self._verdicts])
        return [self._behaviour(i, of_id.get(i), share.get(i)) for i in ids]

    def _behaviour(self, i: str, principle: Principle | None, share: float | None) -> Behaviour:
        rounds = self._rounds[i].means() if i in self._rounds else {}
        verdicts = self._verdicts[i].means() if i in self._verdicts else {}
        return Behaviour(
            id=i,
            principle=principle,
            share=share,
            revisions=self._counts["rounds", i],
            flagged=rounds.get("filtered"),
            changed=rounds.get("edit"),
            longer=rounds.get("words"),
            verdicts=self._counts["verdicts", i],
            sure=verdicts.get("label_p"),
            position_bias=verdicts.get("position_bias"),
            non_option_mass=verdicts.get("non_option_mass"),
        )


# What `cai eval` found of policies, as a part of a run's report.


CLEAR = ("interval without ½", "interval with ½")


class Grid(NamedTuple):
    """A table of texts; rows that are `marked` are to be looked at."""

    title: str
    head: list[str]
    rows: list[list[str]]
    notes: list[str]
    marked: list[bool]


def evaluation_grids(report: PolicyReport) -> list[Grid]:
    """All figures, in the order of `cai eval`; a table without rows is left out."""
    grids = [*_against(report), _standings(report), *_probes(report), *_monitors(report), *_scores(report)]
    return [grid for grid in grids if grid.rows]


def evaluation_plots(report: PolicyReport) -> list[Plot]:
    """Win rates by axis and tag, the two axes, the course of PPO; what there is of them."""
    plots = []
    for policy, against in _pairs(report):
        shown = [i for row in report.against if (row.policy, row.against) == (policy, against) for i in _interval(row)]
        if shown:
            plots.append(intervals(f"{policy} against {against}", "win rate", shown, even=0.5, marks=CLEAR))
    points = [
        Point(s.policy, _on_axis(s.helpful), _on_axis(s.safe))
        for s in report.standings
        if s.helpful.elo is not None and s.safe.elo is not None
    ]
    if len(points) > 1:
        title = "The two axes, in Elo points; without a bar where nothing bounds them"
        plots.append(plane(title, ("helpful", "safe"), points))
    for title, found in (
        ("The course of PPO: score of the reward model", [(c.last, c.proxy) for c in report.gold_vs_proxy]),
        ("The course of PPO: win rate by the eval judge", [(c.last, c.gold) for c in report.gold_vs_proxy]),
    ):
        if known := [(float(update), value.mean) for update, value in found if value is not None]:
            plots.append(curves(title, {"mean": known}))
    return plots


def _pairs(report: PolicyReport) -> list[tuple[str, str]]:
    return list(dict.fromkeys((row.policy, row.against) for row in report.against))


def _interval(row: Against) -> Iterator[Interval]:
    rate = row.win_rate
    if rate is not None and rate.low is not None and rate.high is not None:
        name = f"{row.axis}, {row.tag}" if row.tag else row.axis
        yield Interval(name, rate.mean, rate.low, rate.high, sure=not rate.low <= 0.5 <= rate.high)


def _on_axis(rating: Rating) -> Bounded:
    return rating.elo or 0.0, rating.low, rating.high


def _grid(title: str, head: list[str], rows: list[list[str]], notes: Sequence[str] = ()) -> Grid:
    return Grid(title, head, rows, list(dict.fromkeys(filter(None, notes))), [False] * len(rows))


def _against(report: PolicyReport) -> Iterator[Grid]:
    head = ["axis", "tag", "prompts", "win rate", "at equal length", "words, of both"]
    for policy, against in _pairs(report):
        rows = [row for row in report.against if (row.policy, row.against) == (policy, against)]
        cells = []
        for row in rows:
            rates = [estimate(row.win_rate), estimate(row.at_equal_length)]
            words = f"{row.words[0]:.0f}, {row.words[1]:.0f}" if row.words else "–"
            cells.append([row.axis, row.tag or "all", str(row.prompts), *rates, words])
        yield _grid(f"{policy} against {against}", head, cells, [row.no_equal_length for row in rows if not row.tag])


def _standings(report: PolicyReport) -> Grid:
    rows = [[s.policy, elo_told(s.helpful), elo_told(s.safe), dominated_told(s)] for s in report.standings]
    missing = [f"{s.policy}: {r.missing}" for s in report.standings for r in (s.helpful, s.safe) if r.missing]
    head = ["policy", "helpful", "safe", "better on both"]
    return _grid("Two axes, in Elo points against the reference", head, rows, missing)


def _probes(report: PolicyReport) -> Iterator[Grid]:
    names = [policy.name for policy in report.policies]
    found = told_rates(report.probes, report.checks)
    for probe in dict.fromkeys(probe for probe, _, _ in found):
        rows = [
            [group, what, *(estimate(by[name].rate if name in by else None) for name in names)]
            for (of, group, what), by in found.items()
            if of == probe
        ]
        yield _grid(PROBES.get(probe, probe), ["group", "what", *names], rows)


def _monitors(report: PolicyReport) -> Iterator[Grid]:
    head = ["sign", "state", "value", "policy", "reference", "warns at", "what it is"]
    for policy in report.policies[1:]:
        watched = [m for m in report.monitors if m.policy == policy.name]
        rows = []
        for m in watched:
            figures = [estimate(m.value), number(m.here), number(m.reference), bound_told(m)]
            rows.append([m.name, m.state, *figures, m.missing or m.meaning])
        grid = _grid(f"Signs of reward hacking in {policy.name}", head, rows)
        yield grid._replace(marked=[m.state == "warns" for m in watched])


def _scores(report: PolicyReport) -> Iterator[Grid]:
    kl = [[d.policy, estimate(d.answer), number(d.token), str(d.skipped)] for d in report.divergences if d.answer]
    missing = [f"{d.policy}: {d.missing}" for d in report.divergences if d.missing]
    yield _grid("KL from the reference, nats", ["policy", "an answer", "a token", "left out"], kl, missing)
    scored = [row for row in report.rewards if row.score is not None]
    scores = [[row.policy, estimate(row.score), estimate(row.gain), estimate(row.agrees)] for row in scored]
    head = ["policy", "score", "over the reference", "eval judge agrees"]
    yield _grid("The reward model on these answers", head, scores)
    course = [
        [f"{c.first} to {c.last}", str(c.samples), estimate(c.proxy), number(c.kl), estimate(c.gold)]
        for c in report.gold_vs_proxy
    ]
    head = ["updates", "samples", "reward", "KL", "win rate"]
    yield _grid("The course of PPO: its samples by the reward model and by the eval judge", head, course)


# The report of one run: what it was made of, what came of it, every example.


Found = TypeVar("Found")


class Contents(NamedTuple):
    """A run read through once, and what of it could not be read."""

    table: Table
    constitution: Constitution | None
    behaviours: list[Behaviour]
    missing: list[str]


class Stage(NamedTuple):
    """One stage of training: its settings, what came of it in words, and the numbers of its plots."""

    name: str
    settings: str
    lines: list[str]
    plots: list[int]


def read_run(folder: RunFolder) -> Contents:
    """Read every row of a run; where one is damaged or of another version, there are no examples."""
    missing: list[str] = []
    constitution = _part("Its constitution", folder.constitution, missing)
    found = _part("The examples", lambda: _examples(folder), missing)
    table, tally = found or (Table(COLUMNS, FACETS, [], lambda i: Detail([]), lambda i, text: False), Tally())
    return Contents(table, constitution, tally.behaviours(constitution), missing)


def _examples(folder: RunFolder) -> tuple[Table, Tally]:
    examples, tally, lines = Examples(folder), Tally(), []
    for prompt_id in examples.ids:
        example = examples.read(prompt_id)
        lines.append(run_line(example))
        tally.add(example)

    def holds(prompt_id: str, text: str) -> bool:
        return examples.may_hold(prompt_id, text) and run_detail(examples.read(prompt_id)).holds(text)

    return Table(COLUMNS, FACETS, lines, lambda i: run_detail(examples.read(i)), holds), tally


def _part(what: str, read: Callable[[], Found], missing: list[str]) -> Found | None:
    """A part of a run; one that cannot be read is told in `missing`, and the page does without it."""
    try:
        return read()
    except CaiError as error:
        missing.append(f"{what} cannot be shown: {error}")
        return None


def run_report(folder: RunFolder, contents: Contents, url: str | None = None) -> str:
    """The HTML of a run's report, with a note on each part that cannot be read; raises CaiError without a manifest."""
    manifest, missing = folder.manifest(), list(contents.missing)
    told = told_of(folder, missing)
    plots = _overview_plots(contents)
    overview = list(range(len(plots)))
    gate = _part("The gate of its judge", lambda: _gate(folder), missing)
    if gate is not None:
        plots.append(
            reliability(
                "The judge on the labelled pairs of its gate", {"judge": [b._asdict() for b in gate.reliability]}
            )
        )
    evaluated, first = _part("The evaluation", folder.policy_report, missing), len(plots)
    plots += evaluation_plots(evaluated) if evaluated else []
    of_policies = list(range(first, len(plots)))
    stages = []
    for path in sorted((p for p in folder.train.glob("*") if p.is_dir()), key=stage_order):
        first, of_stage = len(plots), f"All of {path.name}"
        plots += _part(of_stage, partial(_stage_plots, path, told.calibration.get(path.name)), missing) or []
        settings = _part(of_stage, partial(stage_settings, path), missing)
        lines, drawn = told.training.get(path.name, []), list(range(first, len(plots)))
        stages.append(Stage(path.name, as_yaml(settings) if settings else "", lines, drawn))
    return report(
        "run.html.jinja",
        contents.table,
        plots,
        url,
        name=folder.name,
        made_of=made_of(manifest),
        notes=[*missing, *told.notes],
        facts=told.facts,
        constitution=contents.constitution,
        behaviours=contents.behaviours,
        overview=overview,
        judge=told.judge,
        gate=figures(gate) if gate else [],
        gate_notes=gate.notes if gate else [],
        gate_plot=len(overview) if gate else None,
        evaluated=evaluation_grids(evaluated) if evaluated else [],
        evaluated_notes=evaluated.notes if evaluated else [],
        evaluated_plots=of_policies,
        monitors=told.monitors,
        stages=stages,
        files=configuration_files(folder, manifest),
        skipped=told.skipped,
        percent=percent,
        number=number,
    )


def _overview_plots(contents: Contents) -> list[Plot]:
    plots = []
    column = {c.title: at for at, c in enumerate(COLUMNS)}

    def values(title: str) -> list[float]:
        return [v for line in contents.table.lines if isinstance(v := line.cells[column[title]], int | float)]

    drafts, revised, judge, after = (values(title) for title in ("words", "revised", "judge", "after"))
    if drafts:
        most = float(max(*drafts, *revised))
        plots.append(
            histogram("Words of draft and last revision", "words", {"draft": drafts, "revision": revised}, 0, most)
        )
    labels = {
        name: found for name, found in (("judge, of the chosen", judge), ("eval judge, of after", after)) if found
    }
    if labels:
        plots.append(histogram("What judge and eval judge say", "p", labels, 0, 1))
    met = [b for b in contents.behaviours if b.revisions]
    if met:
        flagged = [round((b.flagged or 0) * b.revisions) for b in met]
        fit = [b.revisions - n for b, n in zip(met, flagged, strict=True)]
        plots.append(
            bars(
                "Revisions by principle",
                "revisions",
                [b.id for b in met],
                {"fit": fit, "flagged": flagged},
                stacked=True,
            )
        )
    return plots


def _stage_plots(path: Path, bins: list[dict[str, float]] | None) -> list[Plot]:
    logged = logged_curves(read_metrics(path / "metrics.jsonl"))
    plots = [curves(f"{path.name}: {name}", {name: points}) for name, points in logged.items()]
    if bins:
        plots.append(reliability(f"{path.name}: calibration on held-out pairs", {"reward model": bins}))
    return plots


def _gate(folder: RunFolder) -> JudgeReport | None:
    return read_judge_evaluation(folder.judge).report if (folder.judge / JUDGE_JSON).exists() else None
