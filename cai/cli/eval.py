"""`cai eval`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cai.cli.console import line, resumable, whole
from cai.cli.options import DEFAULT_RUNS, KeyEnv, Limit, Replace, RunsFolder, Settings
from cai.config.characters import visible
from cai.config.errors import CaiError
from cai.evaluation.monitors import format_threshold
from cai.evaluation.policy_report import PolicyReport
from cai.evaluation.probe_metrics import PROBES, rates_to_report
from cai.evaluation.win_rates import format_dominated, format_elo
from cai.inference.scheduler import Reporter
from cai.runs.evaluate import Options, evaluate_policies, plan_evaluation
from cai.runs.find import find_policy
from cai.runs.folder import CACHE_FILE
from cai.stats.formatting import counted, estimate, number
from cai.stats.intervals import Estimate

STYLES = {"warns": "bold yellow", "unclear": "dim", "fine": "green", "not measured": "dim"}
TAGS = 4  # the most frequent ones, which are named


def eval_(
    policy: Annotated[str, typer.Argument(metavar="POLICY", help="Run, `cai train` folder, or model.")],
    against: Annotated[
        list[str] | None,
        typer.Option("--against", metavar="POLICY", help="Another policy to evaluate; may be repeated."),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option("--reference", metavar="POLICY", help="Policy to compare with.", show_default="base model"),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", metavar="FILE", help="File or Hub id of prompts.", show_default="held out"),
    ] = None,
    constitution: Annotated[
        str | None, typer.Option("--constitution", metavar="NAME", help="Of the eval judge.", show_default="the run's")
    ] = None,
    judge: Annotated[
        str | None, typer.Option("--judge", metavar="NAME", help="Judge model or server.", show_default="the run's")
    ] = None,
    key_env: KeyEnv = None,
    probes: Annotated[
        str, typer.Option("--probes", metavar="LIST", help="all, none, or some of over_refusal,sycophancy,red_team.")
    ] = "all",
    limit: Limit = None,
    settings: Settings = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder for the results.", show_default="RUN/eval"),
    ] = None,
    replace: Replace = False,
    runs: RunsFolder = DEFAULT_RUNS,
) -> None:
    """Evaluate a policy: win rates, probes, reward hacking.

    Win rates against other policies by an eval judge, on two axes (helpful and safe); probes for over-refusal,
    sycophancy and red-team prompts; signs of reward hacking. --set takes settings of
    `evaluate:` in a run file. After an interrupt, the same command resumes.
    """
    options = Options(
        policy, against or [], reference, prompts, constitution, judge, key_env, probes, limit, settings or []
    )
    console = Console()
    plan = plan_evaluation(options, runs)
    run = find_policy(options.policy, runs).run
    if out is None and run is None:
        raise CaiError(f"--out: '{options.policy}' is no run, and has no folder for results; name one")
    target = out if out is not None else run.eval if run is not None else Path()
    with resumable(console):
        report = evaluate_policies(plan, target, runs / CACHE_FILE, Reporter(console), replace)
    for part in report_tables(report):
        if isinstance(part, Table):
            whole(console, part)
        else:
            line(console, part)
    line(console, f"\n  metrics and rows are in {target}/")


def report_tables(report: PolicyReport) -> Iterator[Table | Text]:
    """The report as tables, with what a reader must not miss at its end."""
    yield from _against(report)
    yield from _standings(report)
    yield from _probes(report)
    for policy in report.policies[1:]:
        yield from _monitors(report, policy.name)
    yield from _rewards(report)
    for note in report.notes:
        yield Text(visible(f"  note: {note}"), style="yellow")


def _heading(text: str) -> Text:
    return Text(visible(f"\n{text}"), style="bold")


def _against(report: PolicyReport) -> Iterator[Table | Text]:
    tags = ", ".join(f"{count} {tag}" for tag, count in list(report.tags.items())[:TAGS])
    more = ", …" if len(report.tags) > TAGS else ""
    yield _heading(counted(report.prompts, "prompts") + (f" ({tags}{more})" if tags else ""))
    for policy, against in dict.fromkeys((row.policy, row.against) for row in report.comparisons):
        rows = [row for row in report.comparisons if (row.policy, row.against) == (policy, against)]
        words = next((row.words for row in rows if row.words), None)
        length = f"; {words[0]:.0f} words an answer to {words[1]:.0f}" if words else ""
        yield _heading(f"{policy} against {against}{length}")
        table = _table("axis", "prompts", "n", "win rate", "length-controlled")
        for row in rows:
            rates = (_rate(row.win_rate), _rate(row.length_controlled_win_rate))
            table.add_row("" if row.tag else row.axis, _text(row.tag or "all"), str(row.prompts), *rates)
        yield table
        for reason in dict.fromkeys(
            row.length_controlled_missing for row in rows if row.tag is None and row.length_controlled_missing
        ):
            yield Text(f"  – {reason}", style="dim")


def _standings(report: PolicyReport) -> Iterator[Table | Text]:
    yield _heading("Two axes, in Elo points against the reference")
    table = _table("", "helpful", "safe", "better on both")
    missing = set()
    for standing in report.standings:
        points = (format_elo(standing.helpful), format_elo(standing.safe))
        table.add_row(_text(standing.policy), *points, _text(format_dominated(standing)))
        missing |= {(r.policy, r.missing) for r in (standing.helpful, standing.safe) if r.elo is None}
    yield table
    for policy, reason in sorted(missing):
        yield Text(visible(f"  – {policy}: {reason}"), style="dim")


def _probes(report: PolicyReport) -> Iterator[Table | Text]:
    names = [policy.name for policy in report.policies]
    rows = rates_to_report(report.probes, report.checks)
    for probe in dict.fromkeys(probe for probe, _, _ in rows):
        yield _heading(PROBES[probe])
        table = _table("", "", *names)
        last = ""
        for (of, group, what), by_policy in rows.items():
            if of == probe:
                cells = [_rate(by_policy[name].rate if name in by_policy else None) for name in names]
                table.add_row(_text("" if group == last else group), what, *cells)
                last = group
        yield table


def _monitors(report: PolicyReport, policy: str) -> Iterator[Table | Text]:
    monitors = [monitor for monitor in report.monitors if monitor.policy == policy]
    yield _heading(f"Signs of reward hacking in {policy}")
    table = _table("", "", "value", "policy", "reference", "warns at")
    for m in monitors:
        if m.state != "not measured":
            state = Text(m.state, style=STYLES[m.state])
            table.add_row(state, m.name, estimate(m.value), number(m.here), number(m.reference), format_threshold(m))
    yield table
    for m in monitors:
        if m.state == "warns":
            yield Text(visible(f"  warning: {m.name}: {m.meaning}"), style=STYLES["warns"])
    reasons: dict[str, list[str]] = {}
    for m in monitors:
        if m.state == "not measured":
            reasons.setdefault(m.missing, []).append(m.name)
    for reason, names in reasons.items():
        yield Text(visible(f"  not measured: {', '.join(names)}: {reason}"), style=STYLES["not measured"])


def _rewards(report: PolicyReport) -> Iterator[Table | Text]:
    scored = [row for row in report.rewards if row.score is not None]
    if scored:
        yield _heading("The reward model on these answers")
        table = _table("", "score", "over the reference", "eval judge agrees")
        for row in scored:
            table.add_row(_text(row.policy), estimate(row.score), estimate(row.gain), _rate(row.agrees))
        yield table
    if report.gold_vs_proxy:
        yield _heading("The course of PPO: its samples by the reward model and by the eval judge")
        table = _table("updates", "samples", "reward", "KL", "win rate")
        for part in report.gold_vs_proxy:
            cells = (str(part.samples), estimate(part.proxy), number(part.kl), _rate(part.gold))
            table.add_row(f"{part.first} to {part.last}", *cells)
        yield table


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 0, 0, 2))
    for column in columns:
        table.add_column(_text(column), no_wrap=True)
    return table


def _text(text: str) -> Text:
    return Text(visible(text))


def _rate(rate: Estimate | None) -> str:
    """A share."""
    return estimate(rate, digits=2)
