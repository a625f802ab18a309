"""`cai report`."""

from cai.cli.console import echo, write_file
from cai.cli.options import DEFAULT_RUNS, PageOut, RunName, RunsFolder
from cai.report.run import read_run, run_report
from cai.runs.folder import open_run


def report(run: RunName, out: PageOut = None, runs: RunsFolder = DEFAULT_RUNS) -> None:
    """Write a run's report as an HTML page.

    Metrics, plots, the effect of each principle, every example, and all settings; by default in report.html in the
    run's folder.
    """
    folder = open_run(run, runs)
    target = out or folder.path / "report.html"
    contents = read_run(folder)
    write_file(target, run_report(folder, contents))
    echo(f"Wrote {target} ({target.stat().st_size / 1e6:.1f} MB, {len(contents.table.lines):,} examples)")
    for problem in contents.missing:
        echo(f"! {problem}")
