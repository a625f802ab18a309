"""A run's folder: what lies in it, its manifest, and reading it back."""

import difflib
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from cai.config.errors import CaiError
from cai.constitution.principles import Constitution, load_constitution
from cai.data.jsonl import AnyRow, read_rows
from cai.data.manifest import _short, read_json
from cai.data.records import Comparison, Preference, Prompt, Revision, Skipped
from cai.evaluation.policy_report import PolicyReport, read_report

ITERATION = "iteration-"
CACHE_FILE = "cache.sqlite"  # beside the runs, shared by all of them
SWEEP_JSON = "sweep.json"  # in a folder of runs that are one sweep


class RunFolder:
    """The files of one run, by name. Complete in itself: it can be copied away and still be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run_yaml = path / "run.yaml"  # as given
        self.manifest_json = path / "manifest.json"  # everything that decides the result
        self.constitution_yaml = path / "constitution.yaml"
        self.eval_constitution_yaml = path / "eval_constitution.yaml"
        self.templates = path / "templates"
        self.prompts_jsonl = path / "prompts.jsonl"
        self.revisions_jsonl = path / "revisions.jsonl"
        self.preferences_jsonl = path / "preferences.jsonl"
        self.rankings_jsonl = path / "rankings.jsonl"  # of prompts with more than two judged samples
        self.evaluation_jsonl = path / "evaluation.jsonl"
        self.skipped_jsonl = path / "skipped.jsonl"
        self.train = path / "train"
        self.judge = path / "judge"  # what the gate found, if the run has one
        self.eval = path / "eval"  # what `cai eval` found, if it was asked
        self.summary_json = path / "summary.json"  # written last: its presence means that the run is finished
        self.log = path / "log.txt"

    @property
    def name(self) -> str:
        """The run's name; that of an iteration, or of a run in a sweep, stands behind the whole's and a slash."""
        path = self.path.resolve()
        part = path.name.startswith(ITERATION) or (path.parent / SWEEP_JSON).exists()
        return f"{path.parent.name}/{path.name}" if part else path.name

    def started(self) -> datetime | None:
        """When the run was begun, by the first line of its log, which a copy keeps; None where there is none."""
        try:
            with self.log.open(encoding="utf-8", errors="replace") as lines:
                return datetime.fromisoformat(lines.readline().split(" ")[0])
        except (OSError, ValueError):
            return None

    def manifest(self) -> dict[str, Any]:
        """The lock; raises CaiError when the folder holds no run."""
        manifest = read_json(self.manifest_json)
        for part in ("config", "constitution", "eval_constitution"):
            if not isinstance(manifest.get(part) or {}, dict):
                raise CaiError(f"{self.manifest_json}: {part}: expected an object, found {_short(manifest[part])}")
        return manifest

    def summary(self) -> dict[str, Any] | None:
        """The summary, or None while the run is unfinished."""
        return read_json(self.summary_json) if self.summary_json.exists() else None

    def constitution(self) -> Constitution:
        """The constitution the run was made with."""
        return load_constitution(self.constitution_yaml)

    def prompts(self) -> list[Prompt]:
        """All prompts, training and held out."""
        return _rows(self.prompts_jsonl, Prompt)

    def revisions(self) -> list[Revision]:
        """One row a prompt and round; [] when the run has none yet."""
        return _rows(self.revisions_jsonl, Revision)

    def preferences(self) -> list[Preference]:
        """All labelled pairs; [] when the run has none yet."""
        return _rows(self.preferences_jsonl, Preference)

    def evaluation(self) -> list[Comparison]:
        """One row a held-out prompt; [] when the run has none yet."""
        return _rows(self.evaluation_jsonl, Comparison)

    def policy_report(self) -> PolicyReport | None:
        """What `cai eval` found of the run's policy; None where there is nothing yet."""
        path = self.eval / "evaluation.json"
        return read_report(path) if path.exists() else None

    def policy(self) -> Path | None:
        """The model of the last stage that makes a policy; None where there is none, or it was not copied along."""
        models = [path for path in self.train.glob("[0-9]*-*/model") if not path.parent.name.endswith("-reward")]
        return max(models, key=lambda path: stage_order(path.parent), default=None)

    def skipped(self) -> list[Skipped]:
        """What was not used, and why."""
        return _rows(self.skipped_jsonl, Skipped)


def open_run(name: str, runs: Path) -> RunFolder:
    """The folder of a run given by name or by path; raises CaiError when there is none, naming the nearest."""
    for path in (runs / name, Path(name)):
        if (path / "manifest.json").exists():
            return RunFolder(path)
    raise CaiError(f"no run '{name}' in {runs}/ ({runs_meant(name, runs)})")


def runs_meant(name: str, runs: Path) -> str:
    """For a message: the run that a mistyped name is likely to mean, or else all there are."""
    return _meant(name, runs, "runs", [folder.path for folder in all_runs(runs)])


def open_sweep(name: str, runs: Path) -> Path:
    """The folder of a sweep given by name or by path; raises CaiError when there is no folder, naming the nearest."""
    for path in (runs / name, Path(name)):
        if path.is_dir():
            return path
    known = [path.parent for path in runs.glob(f"*/{SWEEP_JSON}")]
    raise CaiError(f"no sweep '{name}' in {runs}/ ({_meant(name, runs, 'sweeps', known)})")


def _meant(name: str, runs: Path, things: str, paths: Sequence[Path]) -> str:
    known = sorted(str(path.relative_to(runs)) for path in paths)
    near = difflib.get_close_matches(name.removeprefix(f"{runs}/").rstrip("/"), known, n=1)
    return f"did you mean '{near[0]}'?" if near else f"{things} there: {', '.join(known) or 'none'}"


def all_runs(runs: Path) -> list[RunFolder]:
    """Every run below a folder, the newest first; those whose start is not known come last."""
    folders = [runs, *(path.parent for path in runs.glob(f"*/{SWEEP_JSON}"))]
    patterns = ("*/manifest.json", f"*/{ITERATION}*/manifest.json")
    found = {manifest.parent for folder in folders for pattern in patterns for manifest in folder.glob(pattern)}
    listed = map(RunFolder, sorted(found))
    return sorted(listed, key=lambda run: (run.started() or datetime.min).replace(tzinfo=None), reverse=True)


def stage_order(stage: Path) -> tuple[int, str]:
    """Sorts the folders of stages, such as 2-ppo, as they were trained."""
    first = stage.name.split("-")[0]
    return (int(first) if first.isdecimal() else 0, stage.name)


def stage_settings(stage: Path) -> dict[str, Any]:
    """The settings a stage was trained with; empty where its folder does not say."""
    path = stage / "stage.json"
    settings: dict[str, Any] = read_json(path).get("settings", {}) if path.exists() else {}
    return settings


def _rows(path: Path, model: type[AnyRow]) -> list[AnyRow]:
    return read_rows(path, model) if path.exists() else []
