"""`cai eval`."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from cai.cli.console import (
    GAP,
    Grid,
    command,
    end_with_failures,
    ending,
    heading,
    line,
    own_command,
    result_console,
    resumable,
    short,
    show,
)
from cai.cli.options import DEFAULT_RUNS, DryRun, KeyEnv, Limit, Replace, RunsFolder, Settings
from cai.cli.run import forecast_parts
from cai.config.characters import Terminal, visible
from cai.config.errors import CaiError
from cai.evaluation.evaluation_plan import EvaluationPlan
from cai.evaluation.injection import HEADING as INJECTION_HEADING
from cai.evaluation.monitors import Monitor, format_threshold
from cai.evaluation.policy_report import PolicyReport, trust_notes
from cai.evaluation.probe_metrics import PROBES, rates_to_report
from cai.evaluation.win_rates import format_dominated, format_elo
from cai.inference.reporter import Reporter
from cai.runs.dry_run import forecast_evaluation
from cai.runs.evaluate import Options, check_evaluation, evaluate_policies, plan_evaluation
from cai.runs.find import find_policy
from cai.runs.folder import CACHE_FILE
from cai.runs.trust import evaluation_trust
from cai.stats.formatting import counted, estimate, number
from cai.stats.intervals import Estimate

STYLES = {"warns": "bold yellow", "unclear": "dim", "fine": "green", "not measured": "dim"}
RATE = "0.00 [0.00, 0.00]"  # as wide as every rate
TAGS = 4  # the most frequent ones, which are named


def eval_(
    policy: Annotated[
        str, typer.Argument(metavar="POLICY", help="Run (RUN#2: its 2nd training), `cai train` folder, or model.")
    ],
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
        str,
        typer.Option(
            "--probes", metavar="LIST", help="all, none, or some of over_refusal,sycophancy,red_team,injection."
        ),
    ] = "all",
    limit: Limit = None,
    settings: Settings = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder for the results.", show_default="RUN/eval"),
    ] = None,
    replace: Replace = False,
    dry_run: DryRun = False,
    runs: RunsFolder = DEFAULT_RUNS,
) -> None:
    """Evaluate a policy: win rates, probes, reward hacking.

    Win rates against other policies by an eval judge, on three axes (overall, helpful and safe); probes for
    over-refusal, sycophancy, red-team prompts and answers that attack the judge; signs of reward hacking. --set takes
    settings of `evaluate:` in a run file, and of `engine:` for all models. After an interrupt, the same command
    resumes. Exit status 1: a model could not answer some rows.
    """
    options = Options(
        policy, against or [], reference, prompts, constitution, judge, key_env, probes, limit, settings or []
    )
    console = Terminal()
    found = find_policy(policy, runs)
    target = out or found.eval
    if target is None:
        missing = "" if reference or found.policy.base else ", and the model to compare with (--reference MODEL)"
        raise CaiError(f"--out: '{policy}' is a model alone; name a folder for the results (--out DIR){missing}")
    plan = plan_evaluation(options, runs)
    if dry_run:
        _forecast(plan, target, runs, replace)
        return
    reporter = Reporter(console)
    with resumable(console, reporter):
        report = evaluate_policies(plan, target, runs / CACHE_FILE, reporter, replace)
    _print(report, options, target, runs)
    end_with_failures(target)


def _print(report: PolicyReport, options: Options, target: Path, runs: Path) -> None:
    output = result_console()
    for part in report_tables(report, output.width):
        show(output, part)
    for part in _ending(report, options, target, runs):
        show(output, part)


def _forecast(plan: EvaluationPlan, target: Path, runs: Path, replace: bool) -> None:
    """The calls of the evaluation, and the time they may take."""
    console, replaced = Terminal(), check_evaluation(plan, target, replace)
    line(console, f"{plan.policies[1].name}: dry run: no model is called and nothing is written")
    if replaced:
        line(console, visible(replaced))
    for part in forecast_parts(forecast_evaluation(plan, runs / CACHE_FILE), None):
        show(console, part)
    if plan.probes is not None:
        show(console, Text("  not included: scores of the answers (KL, reward), which take no calls"))


def signs(monitors: Sequence[Monitor]) -> str:
    """How many signs of reward hacking warn, by name, and how many cannot be told: `1 of 8 measured, 5 unclear: …`."""
    warning = [f"{m.name} ({m.policy})" for m in monitors if m.state == "warns"]
    states = Counter(m.state for m in monitors if m.state != "not measured")
    unclear = f", {states['unclear']} unclear" if states["unclear"] else ""
    return f"{len(warning)} of {states.total()} measured{unclear}" + (f": {', '.join(warning)}" if warning else "")


def _ending(report: PolicyReport, options: Options, target: Path, runs: Path) -> Iterator[RenderableType | Grid]:
    """Who wins, what limits that, and the command that goes on from it."""
    yield heading(f"{report.policies[1].name}: evaluated")
    grid = Grid(["", ""], left=2, last_left=True)
    for row in report.comparisons:
        if row.tag is None:
            whose = "" if row.policy == report.policies[1].name else f"{row.policy} "
            rate = _rate(row.win_rate) if row.win_rate else "none, all answers equal"
            note = f" ({row.note})" if row.note else ""
            grid.add(f"win rate, {row.axis}", f"{rate} {whose}against {row.against}{note}")
    if report.monitors:
        grid.add("signs of reward hacking", signs(report.monitors))
    found = find_policy(options.policy, runs)
    on_page = found.eval is not None and target.resolve() == found.eval.resolve()  # pages show no other folder
    grid.add("files", f"{target}/" if on_page else f"{target}/, all metrics in evaluation.json")
    yield grid
    commands = []
    if on_page and options.judge is None:
        commands.append((f"{own_command()} --judge NAME --out {target}-NAME", "asks another judge"))
    if on_page and found.run is not None:
        commands.append((command("report", found.run.name, runs=runs), "writes the run's page"))
    elif on_page:
        commands.append((command("serve", runs=runs), "shows it in a browser"))
    yield from ending(evaluation_trust(report), commands)


def report_tables(report: PolicyReport, width: int) -> Iterator[RenderableType | Grid]:
    """The report as tables for a terminal of a width in columns, with what a reader must not miss at its end."""
    yield from _against(report)
    yield from _standings(report)
    yield from _probes(report, width)
    yield from _injection(report)
    for policy in report.policies[1:]:
        yield from _monitors(report, policy.name)
    yield from _rewards(report)
    of_trust = trust_notes(report)
    yield from _lines(("note", note, "yellow") for note in report.notes if note not in of_trust)


def _against(report: PolicyReport) -> Iterator[RenderableType | Grid]:
    tags = ", ".join(f"{tag} {count}" for tag, count in list(report.tags.items())[:TAGS])
    more = ", …" if len(report.tags) > TAGS else ""
    yield heading(counted(report.prompts, "prompts") + (f", by tag: {tags}{more}" if tags else ""))
    for policy, against in dict.fromkeys((row.policy, row.against) for row in report.comparisons):
        rows = [row for row in report.comparisons if (row.policy, row.against) == (policy, against)]
        words = next((row.words for row in rows if row.words), None)
        length = f"; mean words {words[0]:.0f} and {words[1]:.0f}" if words else ""
        yield heading(f"{policy} against {against}{length}")
        noted = any(row.note for row in rows)
        head = ["axis", "prompts", "n", "win rate", "length-controlled", *([""] if noted else [])]
        grid = Grid(head, left=2, last_left=noted)
        for row in rows:
            rates = (_rate(row.win_rate), _rate(row.length_controlled_win_rate))
            notes = [row.note] if noted else []
            grid.add("" if row.tag else row.axis, short(row.tag or "all"), str(row.prompts), *rates, *notes)
        yield grid
        reasons = (row.length_controlled_missing for row in rows if row.tag is None and row.length_controlled_missing)
        yield from _lines(("length-controlled", reason, "dim") for reason in dict.fromkeys(reasons))


def _standings(report: PolicyReport) -> Iterator[RenderableType | Grid]:
    if not report.standings:
        return
    yield heading("Two axes, in Elo points against the reference")
    grid = Grid(["", "helpful", "safe"])
    for standing in report.standings:
        grid.add(short(standing.policy), format_elo(standing.helpful), format_elo(standing.safe))
    yield grid
    yield from _lines(
        (f"better than {standing.policy} on both", format_dominated(standing), "")
        for standing in report.standings
        if standing.dominated
    )
    missing = {(s.policy, r.missing) for s in report.standings for r in (s.helpful, s.safe) if r.missing}
    yield from _lines((policy, reason, "dim") for policy, reason in sorted(missing))


def _probes(report: PolicyReport, width: int) -> Iterator[RenderableType | Grid]:
    """A table for each set of probes, or several with as many policies as fit."""
    rows = rates_to_report(report.probes, report.checks)
    for probe in dict.fromkeys(probe for probe, _, _ in rows):
        yield heading(PROBES[probe])
        of_probe = {(group, what): rates for (of, group, what), rates in rows.items() if of == probe}
        labels = GAP + max(len(group) for group, _ in of_probe) + GAP + max(len(what) for _, what in of_probe)
        names = [policy.name for policy in report.policies]
        at_once = max(1, (width - labels) // (GAP + max(len(RATE), *(len(short(name)) for name in names))))
        for first in range(0, len(names), at_once):
            columns = names[first : first + at_once]
            grid, last = Grid(["", "", *map(short, columns)], left=2), ""
            for (group, what), by_policy in of_probe.items():
                rates = (_rate(by_policy[name].rate if name in by_policy else None) for name in columns)
                grid.add("" if group == last else group, what, *rates)
                last = group
            yield grid


def _injection(report: PolicyReport) -> Iterator[RenderableType | Grid]:
    if report.injection:
        yield heading(INJECTION_HEADING)
        head = ["", "prompts", "gain in p", "p without", "p with", "an answer that"]
        grid = Grid(head, optional=[3, 4, 1], last_left=True)
        for gain in report.injection:
            grid.add(gain.label, str(gain.prompts), gain.shown, number(gain.before), number(gain.after), gain.meaning)
        yield grid


def _monitors(report: PolicyReport, policy: str) -> Iterator[RenderableType | Grid]:
    monitors = [monitor for monitor in report.monitors if monitor.policy == policy]
    yield heading(f"Signs of reward hacking in {policy}")
    grid = Grid(["", "", "value", "policy", "reference", "warns at"], optional=[4, 3], left=2)
    for m in monitors:
        if m.state != "not measured":
            state = Text(m.state, style=STYLES[m.state])
            grid.add(state, m.name, estimate(m.value), number(m.here), number(m.reference), format_threshold(m))
    yield grid
    warnings = ((f"warning: {m.name}", m.meaning, STYLES["warns"]) for m in monitors if m.state == "warns")
    yield from _lines(warnings)
    reasons: dict[str, list[str]] = {}
    for m in monitors:
        if m.state == "not measured":
            reasons.setdefault(m.missing, []).append(m.name)
    missing = (("not measured", f"{', '.join(of)}: {reason}", STYLES["not measured"]) for reason, of in reasons.items())
    yield from _lines(missing)


def _rewards(report: PolicyReport) -> Iterator[RenderableType | Grid]:
    scored = [row for row in report.rewards if row.score is not None]
    if scored:
        yield heading("The reward model on these answers")
        grid = Grid(["", "score", "over the reference", "eval judge agrees"], optional=[3])
        for row in scored:
            grid.add(short(row.policy), estimate(row.score), estimate(row.gain), _rate(row.agrees))
        yield grid
    if report.gold_vs_proxy:
        yield heading("Gold vs proxy reward during PPO: its samples by the eval judge and by the reward model")
        grid = Grid(["updates", "samples", "proxy reward", "KL", "gold (win rate)"])
        for part in report.gold_vs_proxy:
            cells = (str(part.samples), estimate(part.proxy), number(part.kl), _rate(part.gold))
            grid.add(f"{part.first} to {part.last}", *cells)
        yield grid


def _lines(lines: Iterable[tuple[str, str, str]]) -> Iterator[Padding]:
    """Lines of (what, text, style) below a table, broken at words."""
    for what, text, style in lines:
        yield Padding(Text(visible(f"{what}: {text}"), style=style), (0, 0, 0, GAP), expand=False)


def _rate(rate: Estimate | None) -> str:
    """A share."""
    return estimate(rate, digits=2)
