"""The lists of `cai serve` and `cai runs`: all runs of a folder, and the runs of a sweep beside what varies.

A run that has not finished is listed as running, with its progress, as failed, with the error, or as stopped.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

from cai.config.errors import CaiError
from cai.data.manifest import is_busy, read_json
from cai.evaluation.evaluation_plan import OVERALL
from cai.evaluation.policy_report import REPORT, read_report
from cai.report.html import render_list
from cai.runs.folder import ITERATION, RunFolder, all_runs, all_sweeps, all_trainings, training_started
from cai.runs.metrics import summary_metrics
from cai.runs.progress import run_progress
from cai.runs.sweep import SWEEP_METRICS, IndexedRun, read_index, sweep_metric_texts
from cai.stats.formatting import counted, duration, estimate
from cai.training.stage import FAILURE, MODEL

RUNNING, STOPPED, FAILED, FINISHED = "running", "stopped", "failed", "finished"
STATES = (RUNNING, STOPPED, FAILED, FINISHED)
OLD_SECONDS = 60.0  # from when the last line of a log is shown with its age
MAX_VALUE = 60  # characters of a setting


class RunEntry(NamedTuple):
    """A run in the list; of one that cannot be read, `state` holds the error."""

    name: str
    url: str
    started: str
    state: str
    progress: str = ""  # the last line that it logged, until it has finished; of a failed one the error
    done: int = 0  # of `total` units of the stage that it is in
    total: int = 0
    constitution: str = ""
    model: str = ""
    prompts: str = ""  # of training
    held_out: str = ""
    training: str = ""
    win_rate: str = ""
    comparable: bool = True  # with other runs


class Column(NamedTuple):
    """A column of a list, `kind` being its classes: `n` for numbers, `wide` for what a narrow screen leaves out."""

    title: str
    kind: str = ""


class Row(NamedTuple):
    """An entry of a list with its cells, one a column, besides its state and its name, of which `label` is shown."""

    entry: RunEntry
    label: str
    cells: Sequence[str]


class SweepEntry(NamedTuple):
    """A sweep in the list."""

    name: str
    url: str
    runs: str


COLUMNS = (
    Column("started", "wide"),
    Column("constitution", "wide"),
    Column("model", "wide"),
    Column("prompts", "n"),
    Column("held out", "n wide"),
    Column("training", "wide"),
    Column("win rate", "n"),
)


def list_page(runs: Path) -> str:
    """The HTML of the list of all runs, with links to the sweeps among them."""
    rows = [
        Row(
            run,
            run.name,
            (run.started, run.constitution, run.model, run.prompts, run.held_out, run.training, run.win_rate),
        )
        for run in all_entries(runs)
    ]
    return _page(f"Runs in {runs}", COLUMNS, rows, list(_sweep_entries(runs)))


def sweep_page(runs: Path, name: str) -> str:
    """The HTML of a sweep: a row a run, with the settings that vary and its headline metrics.

    Raises: LookupError for no sweep of this name, CaiError for a damaged index.
    """
    folder = next((folder for folder in all_sweeps(runs) if folder.name == name), None)
    if folder is None:
        raise LookupError(f"there is no sweep '{name}' in {runs}")
    index = read_index(folder)
    settings = list(dict.fromkeys(key for member in index.runs for key in member.varies))
    selected = any(member.principles.how != "all" for member in index.runs)
    columns = [
        *map(Column, settings),
        *([Column("principles")] if selected else []),
        *(Column(metric.name, "n") for metric in SWEEP_METRICS),
    ]
    known = {str(run.path.relative_to(folder)): run for run in all_runs(folder)}  # an index may name any path
    rows = []
    for member in index.runs:
        at = member.run if member.run in known else _iteration(known, member.run)
        cells = [_value(member.varies.get(key)) for key in settings]
        cells += [member.principles.text()] if selected else []
        cells += _headline_cells(known.get(member.run))
        rows.append(Row(_member_entry(f"{name}/{at}", known.get(at), member), at, cells))
    return _page(f"Sweep {name}", columns, rows, [])


def _iteration(known: Iterable[str], last: str) -> str:
    """The newest iteration of a run, whose last one has not begun; `last` where none has."""
    home, _, name = last.rpartition("/")
    return next((at for at in known if home and name.startswith(ITERATION) and at.startswith(f"{home}/")), last)


def _page(title: str, columns: Sequence[Column], rows: Sequence[Row], sweeps: Sequence[SweepEntry]) -> str:
    return render_list("runs.html.jinja", title=title, columns=columns, rows=rows, sweeps=sweeps, running=RUNNING)


def _member_entry(name: str, run: RunFolder | None, member: IndexedRun) -> RunEntry:
    """A run of a sweep as it is listed; one that has no folder yet cannot be opened."""
    entry = run_entry(name, run) if run else RunEntry(name, "", "", "waiting", comparable=False)
    if member.failed and entry.state not in (RUNNING, FINISHED):
        return entry._replace(state=FAILED, progress=member.failed)
    return entry


def _headline_cells(run: RunFolder | None) -> Sequence[str]:
    try:
        return sweep_metric_texts(run.summary() if run else None)
    except (CaiError, LookupError, TypeError, AttributeError):  # the run's state has the error
        return sweep_metric_texts(None)


def _value(value: Any) -> str:
    """The value of a setting as a run file has it."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_VALUE else text[: MAX_VALUE - 1] + "…"


def _sweep_entries(runs: Path) -> Iterator[SweepEntry]:
    for folder in all_sweeps(runs):
        try:
            size = counted(len(read_index(folder).runs), "runs")
        except CaiError as error:
            size = str(error)
        yield SweepEntry(folder.name, f"/sweep?{urlencode({'sweep': folder.name})}", size)


def all_entries(runs: Path) -> list[RunEntry]:
    """The runs and trainings of a folder as they are listed, the newest first."""
    entries = [run_entry(str(folder.path.relative_to(runs)), folder) for folder in all_runs(runs)]
    entries += [training_entry(path.name, path) for path in all_trainings(runs)]
    return sorted(entries, key=lambda entry: entry.started, reverse=True)


def training_entry(name: str, stage: Path) -> RunEntry:
    """A folder of `cai train` as it is listed."""
    started = training_started(stage).strftime("%Y-%m-%d %H:%M")
    failure, progress = stage / FAILURE, ""
    state = FINISHED if (stage / MODEL).exists() else RUNNING if is_busy(stage) else STOPPED
    if state == STOPPED and failure.exists():
        state, progress = FAILED, _first_line(failure)
    entry = RunEntry(name, _report_url(name), started, state, progress, comparable=False)
    try:
        spec, report = read_json(stage / "stage.json"), stage / "eval" / REPORT
        entry = entry._replace(model=str(spec["model"]), training=str(spec["settings"]["stage"]))
        rates = read_report(report).comparisons if report.exists() else []
        rate = next((row.win_rate for row in rates if row.axis == OVERALL and row.tag is None), None)
        return entry._replace(win_rate=estimate(rate) if rate else "")
    except CaiError as error:
        return entry._replace(state=str(error))
    except (LookupError, TypeError):
        return entry._replace(state="written by another version of cai")


def _first_line(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
    except OSError:
        return ""


def run_entry(name: str, folder: RunFolder) -> RunEntry:
    """A run as it is listed."""
    started_at = folder.started()
    started = started_at.strftime("%Y-%m-%d %H:%M") if started_at else ""
    entry = RunEntry(name, _report_url(name), started, FINISHED)
    try:
        manifest, summary = folder.manifest(), folder.summary()
        listed = _with_settings(entry, manifest, summary)
        return listed if summary else _unfinished(listed, folder, manifest)
    except CaiError as error:
        return entry._replace(state=str(error))
    except (LookupError, TypeError, AttributeError):
        return entry._replace(state="written by another version of cai")


def _report_url(name: str) -> str:
    return f"/report?{urlencode({'run': name})}"


def _unfinished(entry: RunEntry, folder: RunFolder, manifest: dict[str, Any]) -> RunEntry:
    """The entry of an unfinished run, with its progress and its numbers of prompts, which a run writes first."""
    progress = run_progress(folder)
    age = f" ({duration(progress.seconds)} ago)" if progress.running and progress.seconds >= OLD_SECONDS else ""
    entry = entry._replace(
        state=RUNNING if progress.running else FAILED if progress.failed else STOPPED,
        progress=progress.line + age,
        done=progress.done,
        total=progress.total,
    )
    held_out = len(manifest.get("held_out") or ())
    try:
        with folder.prompts_jsonl.open("rb") as lines:
            prompts = sum(1 for line in lines if line.strip())
    except OSError:
        return entry
    return entry._replace(prompts=str(prompts - held_out), held_out=str(held_out))


def _with_settings(entry: RunEntry, manifest: dict[str, Any], summary: dict[str, Any] | None) -> RunEntry:
    config, constitution = manifest.get("config") or {}, manifest.get("constitution") or {}
    entry = entry._replace(
        constitution=f"{constitution.get('name', '')} ({len(constitution.get('principles') or {})})",
        model=str(config.get("model", "")),
        training=" ".join(stage.get("stage", "") for stage in config.get("train") or []),
    )
    if summary is None:
        return entry
    win_rate = summary_metrics(summary).get("win_rate")
    return entry._replace(
        prompts=str(summary["prompts"]),
        held_out=str(summary["held_out"]),
        win_rate=str(win_rate) if win_rate else "",
    )
