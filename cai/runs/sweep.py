"""Sweeps: runs that differ in a grid of settings, or in the principles they keep (ablations).

The runs share the cache, so that each makes only the calls that no other one made. `runs/<sweep>/` holds the runs, the
constitutions derived for them, and `sweep.json`, the index of what varies.
"""

import itertools
import json
import os
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, Field, StringConstraints, model_validator

from cai.config import yaml_files
from cai.config.errors import CaiError, error_text, without_password
from cai.config.locate import find_constitution_file, find_file
from cai.config.validation import RUN_NAME
from cai.config.yaml_files import SET, JsonValue, Section, YamlSource
from cai.constitution.principles import Constitution, constitution_yaml, load_constitution
from cai.data.jsonl import parse_row, write_text
from cai.data.manifest import MOST_CHANGES, read_json
from cai.feedback.metrics import FILTERED, LABEL_P, REVISION_WORDS, WIN_RATE
from cai.runs.folder import SWEEP_JSON, RunFolder, is_run
from cai.runs.metrics import summary_metrics
from cai.runs.plan import Plan, claim, folder_name, iteration, make_plan
from cai.runs.roles import check_addresses
from cai.runs.run_file import load_run_file
from cai.stats.formatting import NONE, counted

Ablation = Literal["leave-one-out", "one-at-a-time", "first-n"]


class SweepConfig(Section):
    """A sweep: a run file, overrides for all runs, and what varies."""

    name: Annotated[str, StringConstraints(pattern=RUN_NAME)]
    """The folder of the runs and their index, below `runs/`."""
    run: str
    """A run file; found from here, or from the sweep's folder."""
    set: dict[str, JsonValue] = {}
    """Overrides for all runs, such as `judge.principles: 1`."""
    grid: dict[str, Annotated[list[JsonValue], Field(min_length=1)]] = {}
    """Settings of the run file, each with a list of values; every combination is a run."""
    principles: Ablation | None = None
    """Ablations of each: without one principle at a time, with one alone, or with the first 1, 2, 4, … and all."""

    @model_validator(mode="after")
    def _something_varies(self) -> "SweepConfig":
        if not self.grid and self.principles is None:
            raise ValueError("nothing varies: write a `grid:` of settings, or `principles:`, or both")
        return self


class Selection(NamedTuple):
    """Which principles of a constitution a run keeps: all, all but or only `id`, or the first `n`."""

    how: Literal["all", "leave-one-out", "one-at-a-time", "first-n"]
    id: str | None = None
    n: int | None = None

    def text(self) -> str:
        """In words: `without brevity`."""
        words = {"leave-one-out": f"without {self.id}", "one-at-a-time": f"only {self.id}"}
        return words.get(self.how, f"first {self.n}" if self.how == "first-n" else self.how)


class IndexedRun(BaseModel):
    """A run of a sweep, as its index has it; `run` is its folder below the sweep's."""

    run: str
    varies: dict[str, Any]
    principles: Selection
    failed: str = ""  # the error, if the run failed


class SweepIndex(BaseModel):
    """A sweep's sweep.json."""

    name: str
    runs: list[IndexedRun]


class Member(NamedTuple):
    """One run of a sweep: its name, the values of the settings that vary, its principles, and its plan."""

    name: str
    varies: dict[str, Any]
    principles: Selection
    plan: Plan


def make_sweep(
    file: Path, overrides: list[str], runs: Path, derived_in: Path | None = None
) -> tuple[str, list[Member]]:
    """Read a sweep, and plan and check all of its runs.

    Derived constitutions are written to the sweep's folder, or to `derived_in`. Raises: CaiError naming file and field.
    """
    source = yaml_files.read_kind(file, "sweep")
    sweep = yaml_files.validate(source, SweepConfig)
    run_file = find_file("run", sweep.run, file)
    for key in (override.partition("=")[0] for override in overrides):
        if key in sweep.grid:
            raise CaiError(f"--set {key}: {file} varies it in its grid; change the grid, or leave the option out")
    folder = runs / folder_name(sweep.name, f"{file}: name", "choose a shorter one")
    if is_run(folder):
        raise CaiError(f"{file}: name: {folder} is a run; give the sweep another name")
    members: list[Member] = []
    for values in itertools.product(*sweep.grid.values()):
        varies = dict(zip(sweep.grid, values, strict=True))
        settings = [
            f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in {**sweep.set, **varies}.items()
        ] + overrides
        label = "_".join(_label(key, value, sweep.grid) for key, value in varies.items())
        try:
            config = load_run_file(run_file, settings)
            principles_file = find_constitution_file("constitution", config.constitution, run_file)
            whole = load_constitution(principles_file)
            check_addresses(config)  # before a file or an error is named after them
            for selection in _selections(whole, sweep.principles):
                name = "_".join(filter(None, [label, _selection_label(selection, sweep.principles)]))
                changed = settings
                if selection.how != "all":
                    derived = (derived_in or folder / "constitutions") / f"{principles_file.stem}_{name}.yaml"
                    derived.parent.mkdir(parents=True, exist_ok=True)
                    write_text(derived, constitution_yaml(_select(whole, selection)))
                    changed = [*settings, f"constitution={json.dumps(str(derived), ensure_ascii=False)}"]
                plan = make_plan(run_file, changed, name, runs)
                plan = replace(plan, folder=RunFolder(folder / name))
                members.append(Member(name, varies, selection, plan))
        except CaiError as error:
            by_option = {override.partition("=")[0] for override in overrides}
            keys = {key: at for at in ("set", "grid") for key in getattr(sweep, at) if key not in by_option}
            text = _in_the_sweep(str(error), source, keys)
            raise CaiError(f"{file}: in the run {label or 'of this sweep'}:\n{text}") from error
    twice = [m.name for i, m in enumerate(members) if m.name in [other.name for other in members[:i]]]
    if twice:
        raise CaiError(f"{file}: two runs would be named {twice[0]}; the grid has a value twice")
    return sweep.name, members


def _in_the_sweep(error: str, source: YamlSource, keys: dict[str, str]) -> str:
    """An error about settings that are the sweep's own, each by its section: with the file's line in place of --set."""

    def named(option: re.Match[str]) -> str:
        key = option[1]
        if key not in keys:
            return option[0]
        return f"{source.places.get((keys[key], key), source.path)}: {keys[key]}: {key}"

    return re.sub(rf"^{SET}([^\s:]+)", named, error, flags=re.MULTILINE)


def _label(key: str, value: Any, grid: dict[str, list[Any]]) -> str:
    """A setting and its value as part of a name: `rounds-2`; a list or mapping is named by its position in the grid."""
    last = key.split(".")[-1]
    short = last if [k.split(".")[-1] for k in grid].count(last) == 1 else key
    if isinstance(value, dict | list):
        label = str(grid[key].index(value) + 1)
    else:
        text = without_password(str(value))
        label = Path(text).stem if key == "constitution" and isinstance(value, str) else text.lower()
    return re.sub(r"[^A-Za-z0-9.]+", "-", f"{short}-{label}").strip("-")


def _selections(whole: Constitution, ablation: Ablation | None) -> Iterator[Selection]:
    count = len(whole.principles)
    if ablation == "first-n":
        sizes = [2**i for i in range(count.bit_length()) if 2**i < count]
        yield from (Selection("first-n", n=n) for n in sizes)
    yield Selection("all")
    if ablation in ("leave-one-out", "one-at-a-time") and count > 1:
        yield from (Selection(ablation, id=principle.id) for principle in whole.principles)


def _select(whole: Constitution, selection: Selection) -> Constitution:
    def kept(position: int, id: str) -> bool:
        if selection.how == "leave-one-out":
            return id != selection.id
        return id == selection.id if selection.how == "one-at-a-time" else position < (selection.n or 0)

    principles = [p for position, p in enumerate(whole.principles) if kept(position, p.id)]
    return whole.model_copy(update={"principles": principles})


def _selection_label(selection: Selection, ablation: Ablation | None) -> str:
    if selection.how == "all":
        return "all" if ablation else ""
    words = {"leave-one-out": f"without-{selection.id}", "one-at-a-time": f"only-{selection.id}"}
    return words.get(selection.how, f"first-{selection.n}")


def last_folder(plan: Plan) -> RunFolder:
    """The folder of a run's last iteration, or of the run if it has one iteration."""
    return iteration(plan, plan.config.iterations, plan.model).folder


def is_finished(plan: Plan) -> bool:
    """Whether the folder holds this very run, finished."""
    first = iteration(plan, 1, plan.model)  # its settings are those of all
    folder = last_folder(plan)
    numbers = [training.number for training in folder.trainings()]
    trained = numbers == list(range(1, plan.config.seeds + 1))  # seeds do not decide what each of them is
    return folder.summary_json.exists() and trained and not claim(first).changes()


def folders(plan: Plan) -> list[RunFolder]:
    """The folders of all of a run's iterations."""
    return [iteration(plan, number, plan.model).folder for number in range(1, plan.config.iterations + 1)]


def has_failed_rows(plan: Plan) -> bool:
    """Whether a model could not answer some rows of a run that is finished."""
    return any((summary := folder.summary()) and summary["skipped"]["failed"] for folder in folders(plan))


def refuse_other_runs(file: Path, name: str, members: list[Member]) -> None:
    """Refuse to overwrite finished or partly trained runs.

    Raises: CaiError when folders of a sweep hold such runs with other settings, with the first one's changes.
    """
    others = []
    for member in members:
        other = claim(iteration(member.plan, 1, member.plan.model))
        with suppress(CaiError):  # a folder that cannot be read fails as that run does, and the others are run
            if (other.is_finished() or other.holds_training()) and (changes := other.changes()):
                others.append((other, changes))
    if others:
        first, changes = others[0]
        held = "a finished run" if first.is_finished() else "an unfinished run, partly trained,"
        raise CaiError(
            f"{first.folder}: holds {held} with other settings:\n  "
            + "\n  ".join(changes[:MOST_CHANGES])
            + f"\n{len(others)} of the sweep's {counted(len(members), 'runs')} would be overwritten. Give the sweep "
            f"another name (`name: {name}` in {file}), or overwrite the runs (--replace)."
        )


def run_members(
    name: str,
    members: list[Member],
    runs: Path,
    run: Callable[[Plan], object],
    say: Callable[[str], object],
    retry_failed: bool = False,
) -> dict[str, str]:
    """Run every unfinished member by `run`, and keep sweep.json up to date.

    With `retry_failed` also the finished ones with rows that a model could not answer.
    Returns: the error of each run that failed; the others run all the same.
    """
    failed: dict[str, str] = {}
    for number, member in enumerate(members, start=1):
        try:
            if is_finished(member.plan) and not (retry_failed and has_failed_rows(member.plan)):
                continue
            say(f"{name}: run {number} of {len(members)}, {member.name}")
            write_index(name, members, runs, failed)
            run(member.plan)
        except Exception as error:
            if os.environ.get("CAI_DEBUG"):
                traceback.print_exc()
            failed[member.name] = error_text(error)
            say(f"{member.name} failed: {failed[member.name]}")
    write_index(name, members, runs, failed)
    return failed


def read_index(folder: Path) -> SweepIndex:
    """The index of a sweep. Raises: CaiError for a folder that is no sweep, or whose index is damaged."""
    path = folder / SWEEP_JSON
    if not folder.is_dir() or not path.exists():
        raise CaiError(f"{folder}: no sweep: {path.name} is not there; `cai sweep FILE` makes one")
    return parse_row(path, read_json(path), SweepIndex)


SWEEP_METRICS = (REVISION_WORDS, FILTERED, LABEL_P, WIN_RATE)
"""The metrics by which the runs of a sweep stand side by side."""


def sweep_metric_texts(summary: dict[str, Any] | None) -> list[str]:
    """SWEEP_METRICS of a run, each with its interval, or – where the run has no such part; "" without a summary."""
    if summary is None:
        return [""] * len(SWEEP_METRICS)
    estimates = summary_metrics(summary)
    return [metric.shown(estimates[metric.key]) if metric.key in estimates else NONE for metric in SWEEP_METRICS]


def write_index(name: str, members: list[Member], runs: Path, failed: dict[str, str]) -> None:
    """Write sweep.json: the folder of every run, what varies, its principles, and its state."""

    def state(member: Member) -> str:
        with suppress(CaiError):  # a damaged folder, which is its run's failure once it is reached
            return "failed" if member.name in failed else "finished" if is_finished(member.plan) else "waiting"
        return "waiting"

    index = {
        "name": name,
        "runs": [
            {
                "run": str(last_folder(member.plan).path.relative_to(runs / name)),
                "varies": member.varies,
                "principles": member.principles._asdict(),
                "state": state(member),
                **({"failed": failed[member.name]} if member.name in failed else {}),
            }
            for member in members
        ],
    }
    (runs / name).mkdir(parents=True, exist_ok=True)
    write_text(runs / name / SWEEP_JSON, json.dumps(index, indent=1, ensure_ascii=False) + "\n")
