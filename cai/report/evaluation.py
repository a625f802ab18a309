"""What `cai eval` found of policies, as a part of a run's report."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from cai.evaluation.policy_report import Against, PolicyReport, Rating, bound_told, dominated_told, elo_told
from cai.evaluation.probe_figures import PROBES, told_rates
from cai.report.plots import Bounded, Interval, Plot, Point, curves, intervals, plane
from cai.runs.judge_page import estimate, number

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
        ("The course of PPO: score of the reward model", [(c.last, c.proxy) for c in report.course]),
        ("The course of PPO: win rate by the referee", [(c.last, c.gold) for c in report.course]),
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
    found = told_rates(report)
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
    kl = [[d.policy, estimate(d.answer), number(d.token), str(d.left_out)] for d in report.divergences if d.answer]
    missing = [f"{d.policy}: {d.missing}" for d in report.divergences if d.missing]
    yield _grid("KL from the reference, nats", ["policy", "an answer", "a token", "left out"], kl, missing)
    scored = [row for row in report.rewards if row.score is not None]
    scores = [[row.policy, estimate(row.score), estimate(row.gain), estimate(row.agrees)] for row in scored]
    head = ["policy", "score", "over the reference", "referee agrees"]
    yield _grid("The reward model on these answers", head, scores)
    course = [
        [f"{c.first} to {c.last}", str(c.samples), estimate(c.proxy), number(c.kl), estimate(c.gold)]
        for c in report.course
    ]
    head = ["updates", "samples", "reward", "KL", "win rate"]
    yield _grid("The course of PPO: its samples by the reward model and by the referee", head, course)
