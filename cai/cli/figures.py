"""Printing the figures of a run, of a reward model, of a judge."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from cai.data.records import Skipped
from cai.evaluation import judge_report
from cai.evaluation.judge_report import JudgeReport
from cai.feedback.filters import FILTERS
from cai.runs.dry_run import DryRun, Line, account
from cai.runs.folder import RunFolder
from cai.runs.metrics import training_lines
from cai.stats.formatting import counted, percent, span
from cai.stats.intervals import Estimate


def print_summary(console: Console, folder: RunFolder) -> None:
    """The summary of a finished run as a two-column table."""
    summary = folder.summary()
    assert summary is not None
    console.print(calls_table(account(summary)))
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 2))
    for name, value in _lines(summary):
        table.add_row(name, value)
    console.print(table)
    console.print(f"  rows, metrics and models are in {folder.path}/", markup=False, highlight=False, soft_wrap=True)


def calls_table(lines: Sequence[Line]) -> Table:
    """Calls by stage and step, and their sum."""
    table = Table(box=None, padding=(0, 1, 0, 2))
    for column in ("stage", "calls for", "all", "remembered", "asked", "tokens written"):
        table.add_column(column, justify="left" if column in ("stage", "calls for") else "right", no_wrap=True)
    for line in lines:
        table.add_row(line.stage, line.step, *_counts(line.asked, line.remembered, line.tokens))
    total = (sum(line.asked for line in lines), sum(line.remembered for line in lines))
    table.add_row("together", "", *_counts(*total, sum(line.tokens for line in lines)), style="bold")
    return table


def _counts(asked: int, remembered: int, tokens: float) -> tuple[str, ...]:
    return tuple(f"{count:,.0f}" for count in (asked + remembered, remembered, asked, tokens))


def forecast_parts(found: DryRun, gpu_rate: float | None) -> Iterator[RenderableType]:
    """A forecast: its calls, the time they may take, and what it does not know."""
    yield calls_table(found.lines)
    asked, written = sum(line.asked for line in found.lines), sum(line.tokens for line in found.lines)
    if not asked:
        yield Text("  every call is remembered: the models are not even loaded")
    elif found.seconds is None:
        yield Text("  how long: unknown, since nothing was measured with this model here; a first run measures it")
    else:
        yield Text(f"  how long: about {span(found.seconds)}, as fast as this model was here so far")
    if asked and gpu_rate is not None:
        hours = (found.tokens_read + written) / gpu_rate / 3600
        yield Text(
            f"  at {gpu_rate:,.0f} tokens/s a GPU: {hours:.2g} GPU-hours for {written:,.0f} tokens written and about "
            f"{found.tokens_read:,.0f} read"
        )
    if found.untrained:
        yield Text(f"  to be trained besides: {', '.join(found.untrained)}; a new policy's answers are all new")
    if found.iterations:
        yield Text(f"  {found.iterations} more iterations follow, each of a policy that is not known yet")


def labelling_lines(found: dict[str, Any]) -> list[str]:
    """What `cai judge` did, as its judge.json has it."""
    cost, skipped = found["cost"], found["skipped"]
    ranked = f", {counted(found['rankings'], 'rankings')}" if found["rankings"] else ""
    mean_p = "–" if found["mean_p"] is None else f"{found['mean_p']:.3f}"
    lines = [
        f"{counted(found['pairs'], 'pairs')} labelled{ranked} in {cost['seconds']:.1f} s; "
        f"{counted(cost['asked'], 'calls')} asked, "
        f"{cost['remembered']} remembered",
        f"same position wins in both orders {percent(found['position_bias'])}; mean p of the chosen {mean_p}; "
        f"{percent(found['non_option_mass'])} of probability outside the letters",
    ]
    if found["agrees_with_given"] is not None:
        lines.append(f"agrees with the file's own labels in {percent(found['agrees_with_given'])} (`cai judge-eval`)")
    lines += [f"left out: {n} × {reason}" for reason, n in skipped["reasons"].items()]
    return lines + ([f"{counted(skipped['failed'], 'rows')} failed"] if skipped["failed"] else [])


def judge_report_tables(report: JudgeReport, skipped: Sequence[Skipped]) -> Iterator[RenderableType]:
    """A judge's report: its figures, its principles, and what a reader must not miss."""
    yield Text(f"\n{counted(report.pairs, 'pairs')} of {counted(report.prompts, 'prompts')}", style="bold")
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 2))
    for figure in judge_report.figures(report):
        table.add_row(Text(figure.name), Text(figure.value), Text(figure.meaning, style="dim"))
    yield table
    yield Text("\nPrinciples, each alone", style="bold")
    table = Table(box=None, padding=(0, 0, 0, 2))
    for column in ("", "accuracy", "pairs", "same place", "non_option_mass"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for quality in report.principles:
        rates = (percent(quality.position_bias), percent(quality.non_option_mass))
        table.add_row(Text(quality.by), Text(str(quality.accuracy)), str(quality.pairs), *rates)
    yield table
    for note in report.notes:
        yield Text(f"  note: {note}", style="yellow")
    for reason, n in Counter(row.reason for row in skipped).items():
        yield Text(f"  left out: {n} × {reason}")


def _lines(summary: dict[str, Any]) -> list[tuple[str, str]]:
    seconds = summary["seconds"]
    lines: list[tuple[str, str]] = []
    if revisions := summary["revisions"]:
        flags = ", ".join(f"{percent(revisions['flags'][flag])} {flag.replace('_', ' ')}" for flag in FILTERS)
        cut = ", ".join(f"{text} {percent(rate)}" for text, rate in revisions["truncated"].items())
        words = revisions["words"]
        lines += [
            ("revisions", f"{revisions['rows']} made; {flags}"),
            ("", f"cut off at max_tokens: {cut}"),
            ("", f"{words['draft']:.0f} words in the draft, {words['revision']:.0f} in the last revision"),
        ]
    if preferences := summary["preferences"]:
        lines.append(("preferences", ", ".join(f"{n} by {source}" for source, n in preferences["by_source"].items())))
        if judged := preferences["judged"]:
            lines.append(
                (
                    "judge",
                    f"same position wins in both orders {percent(judged['position_bias'])}; "
                    f"mean p {judged['mean_p']:.3f}; {percent(judged['non_option_mass'])} non-option mass",
                )
            )
    skipped = summary["skipped"]
    if skipped["reasons"] or skipped["failed"]:
        reasons = [f"{count} × {reason}" for reason, count in skipped["reasons"].items()]
        lines.append(
            ("left out", "; ".join([*reasons, *([f"{skipped['failed']} failed"] if skipped["failed"] else [])]))
        )
    for stage, training in summary["training"].items():
        for number, text in enumerate(training_lines(training)):
            lines.append(("" if number else stage, text))
    if evaluation := summary["evaluation"]:
        words = evaluation["words"]
        lines += [
            ("after against before", f"win rate {Estimate(**evaluation['win_rate'])} by the eval judge"),
            (
                "",
                f"mean p {Estimate(**evaluation['mean_p'])}; same position wins {percent(evaluation['position_bias'])}",
            ),
            ("", f"{words['before']:.0f} words before, {words['after']:.0f} after"),
        ]
    lines.append(("seconds", ", ".join(f"{name} {value:.0f}" for name, value in seconds.items())))
    return lines
