"""`cai compare`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from cai.cli.compare_output import comparison_parts
from cai.cli.console import (
    echo_json,
    line,
    result_console,
    resumable,
    say_failed,
    show,
    write_file,
)
from cai.cli.options import (
    DEFAULT_RUNS,
    DEFAULT_TEMPLATES,
    AsJson,
    DryRun,
    KeyEnv,
    PageOut,
    RunsFolder,
    Settings,
    TemplatesFolder,
)
from cai.cli.run import forecast_parts
from cai.compare.compare import compare_runs
from cai.compare.record import (
    RunComparison,
)
from cai.compare.revisions import (
    Options,
    RevisionJudge,
    forecast_revisions,
    judge_revisions,
    plan_judge,
)
from cai.compare.sample_size import parse_plan
from cai.compare.sample_size import plan as plan_metrics
from cai.config.characters import Terminal
from cai.config.errors import CaiError
from cai.inference.reporter import Reporter
from cai.report.comparison import comparison_report, read_comparison
from cai.runs.folder import RunFolder, open_run
from cai.stats.formatting import counted


def compare(
    names: Annotated[list[str], typer.Argument(metavar="A B [C]...", help="Names or folders of runs.")],
    as_json: AsJson = False,
    out: PageOut = None,
    runs: RunsFolder = DEFAULT_RUNS,
    plan: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[METRIC=]DIFF",
            help="Also print how many prompts a difference of this size needs to be found with 80 % power, for one "
            "metric of the tables (such as 'words after training=10') or all; may be repeated.",
        ),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            "--judge", metavar="NAME", help="Judge model or server that also compares the runs' revisions head to head."
        ),
    ] = None,
    constitution: Annotated[
        str | None,
        typer.Option("--constitution", metavar="NAME", help="Of the eval judge.", show_default="that of A's eval"),
    ] = None,
    key_env: KeyEnv = None,
    templates: TemplatesFolder = DEFAULT_TEMPLATES,
    settings: Settings = None,
    dry_run: DryRun = False,
    baseline: Annotated[
        str | None,
        typer.Option("--baseline", metavar="NAME", help="Which of the runs is A.", show_default="the first"),
    ] = None,
) -> None:
    """Compare runs.

    Each run against the first, A, or the one that --baseline names: settings, effects on shared prompts, and which of
    them are significant. Of three runs, B and C are not compared with each other. Also writes a page, comparison.html
    in the folder of runs; with --json only if --out names one. No model is called, unless --judge names one: it
    compares the last revisions of both runs to the same prompts, by an eval constitution and by that of each run. --set
    takes settings of its engine, such as engine.max_model_len=4096. Its answers are cached; verdicts that failed end
    with status 1, and the same command asks for them again.
    """
    planned = parse_plan(plan or [])
    folders = [open_run(name, runs) for name in _baseline_first(names, baseline)]
    _refuse_twice(folders)
    if judge is None:
        _refuse_without_judge(
            {"--constitution": constitution, "--key-env": key_env, "--set": settings, "--dry-run": dry_run}
        )
        comparison = compare_runs(folders)
    else:
        asked = plan_judge(Options(judge, constitution, key_env, templates, settings or []), folders, runs)
        if dry_run:
            _forecast(asked, folders)
            return
        comparison = _judged(asked, folders, Terminal(stderr=as_json))
    if planned:
        comparison = comparison.model_copy(update={"plan": plan_metrics(comparison, planned)})
    page = None if out is None and as_json else out or runs / "comparison.html"
    _print(comparison, folders, page, as_json, " (--out FILE writes another)" if out is None else "")
    failed = sum(pair.revisions.failed for pair in comparison.pairs if pair.revisions)
    if failed:
        say_failed(f"{counted(failed, 'verdicts')} of --judge failed; the reasons are below its table")
        raise typer.Exit(1)


def _print(
    comparison: RunComparison, folders: Sequence[RunFolder], page: Path | None, as_json: bool, other: str
) -> None:
    """Print a comparison and write its page; `other` says how to keep an earlier page."""
    if as_json:
        echo_json(comparison.model_dump_json(indent=1))
    else:
        console = result_console()
        for part in comparison_parts(comparison):
            show(console, part)
    if page is not None:
        earlier = f", in place of the earlier one{other}" if other and page.exists() else ""
        write_file(page, comparison_report(read_comparison(comparison, folders)))
        if not as_json:
            line(console, f"\nReport: {page}{earlier}")


def _baseline_first(names: Sequence[str], baseline: str | None) -> list[str]:
    """The names with the baseline, which becomes A, in front. Raises: CaiError for one that is not among them."""
    if baseline is not None and baseline not in names:
        raise CaiError(f"--baseline {baseline}: expected one of the runs to compare: {', '.join(names)}")
    return [*names] if baseline is None else [baseline, *(name for name in names if name != baseline)]


def _refuse_twice(folders: Sequence[RunFolder]) -> None:
    """Raises: CaiError for a run that is named twice, under whatever names."""
    paths = [folder.path.resolve() for folder in folders]
    for folder, path in zip(folders, paths, strict=True):
        if paths.count(path) > 1:
            raise CaiError(f"{folder.path}: named twice; expected different runs: a run does not differ from itself")


def _forecast(judge: RevisionJudge, folders: Sequence[RunFolder]) -> None:
    console = Terminal()
    line(console, "dry run: no model is called and nothing is written")
    for part in forecast_parts(forecast_revisions(judge, folders), None):
        show(console, part)


def _judged(judge: RevisionJudge, folders: Sequence[RunFolder], console: Terminal) -> RunComparison:
    reporter = Reporter(console)
    with resumable(console, reporter):
        return compare_runs(folders, judge_revisions=lambda runs: judge_revisions(judge, runs, reporter))


def _refuse_without_judge(options: dict[str, object]) -> None:
    """Raises: CaiError for an option about the judge where none is named."""
    for option, value in options.items():
        if value:
            raise CaiError(f"{option} applies to --judge only; add --judge NAME")
