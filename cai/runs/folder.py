"""A run's folder: its files by name, how to find and read it."""

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from cai.config.errors import CaiError, without_password
from cai.config.hashing import derive_seed
from cai.constitution.principles import Constitution, load_constitution
from cai.data.jsonl import AnyRow, each_row, read_rows
from cai.data.manifest import MANIFEST_JSON, brief, read_json, refuse_old_format
from cai.data.records import Applicability, BeforeAfter, Preference, Prompt, Revision, Skipped
from cai.evaluation.policy_report import REPORT, PolicyReport, each_before_after, read_report

ITERATION = "iteration-"
SEEDS = "seeds"  # the folder of further trainings
RUN, TRAIN = "cai run", "cai train"  # the commands in manifests of runs, and of stages trained alone
CACHE_FILE = "cache.sqlite"  # beside the runs, shared by all of them
CACHE_FILES = (CACHE_FILE, "memo.sqlite")  # how names of its files begin, and what cai 0.1 called it
SWEEP_JSON = "sweep.json"  # in a folder of runs that are one sweep


@dataclass(frozen=True)
class Training:
    """One training of all stages of a run, and the evaluation of its policy; those of a run differ in their seed alone.

    The first, number 1, is in `train/` and `eval/` of the run's folder, and each other one in `seeds/NUMBER/`.
    """

    run: Path
    number: int

    @property
    def home(self) -> Path:
        """The folder of `train` and `eval`."""
        return self.run if self.number == 1 else self.run / SEEDS / str(self.number)

    @property
    def train(self) -> Path:
        """The folder of its stages."""
        return self.home / "train"

    @property
    def eval(self) -> Path:
        """The folder of the evaluation of its policy, by the run itself or by `cai eval`."""
        return self.home / "eval"

    def label(self, name: str) -> str:
        """A name of the run or of one of its stages, with the number of a further training: `1-dpo#2`."""
        return name if self.number == 1 else f"{name}#{self.number}"

    def seed(self, of_run: int) -> int:
        """The seed of its stages, from that of the run: the first training has the run's."""
        return of_run if self.number == 1 else derive_seed("training", of_run, self.number)

    def stages(self) -> list[Path]:
        """The folders of its stages, in the order of their training."""
        return sorted((path for path in self.train.glob("[0-9]*-*") if path.is_dir()), key=stage_order)

    def policy(self) -> Path | None:
        """The model of the last stage that makes a policy; None where there is none, or it was not copied along."""
        stages = [stage for stage in self.stages() if not stage.name.endswith("-reward")]
        return next((stage / "model" for stage in reversed(stages) if (stage / "model").exists()), None)


class RunFolder:
    """The files of one run, by name. Complete in itself: it can be copied away and still be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run_yaml = path / "run.yaml"  # the run file with the overrides and the name in force
        self.manifest_json = path / MANIFEST_JSON  # everything that decides the result
        self.constitution_yaml = path / "constitution.yaml"
        self.eval_constitution_yaml = path / "eval_constitution.yaml"
        self.templates = path / "templates"
        self.prompts_jsonl = path / "prompts.jsonl"
        self.revisions_jsonl = path / "revisions.jsonl"
        self.preferences_jsonl = path / "preferences.jsonl"
        self.rankings_jsonl = path / "rankings.jsonl"  # of prompts with more than two judged samples
        self.applicability_jsonl = path / "applicability.jsonl"  # answers to the questions of principles
        self.skipped_jsonl = path / "skipped.jsonl"
        self.train = self.training(1).train
        self.judge = path / "judge"  # results of `judge_gate`, if the run has one
        self.eval = self.training(1).eval
        self.summary_json = path / "summary.json"  # written last: the run is finished
        self.costs_jsonl = path / "costs.jsonl"  # one row each time the run was started
        self.log = path / "log.txt"

    def row_files(self) -> tuple[Path, ...]:
        """The files of rows that the run itself writes, whether they exist or not; the evaluation has others."""
        return (
            self.prompts_jsonl,
            self.revisions_jsonl,
            self.preferences_jsonl,
            self.rankings_jsonl,
            self.applicability_jsonl,
            self.skipped_jsonl,
        )

    def hashed_files(self) -> tuple[Path, ...]:
        """The files whose content summary.json has; results in folders of their own are in the manifests of these."""
        return (self.run_yaml, self.manifest_json, *self.row_files())

    @property
    def name(self) -> str:
        """The run's name; that of an iteration, or of a run in a sweep, is prefixed: `sweep/run`."""
        path = self.path.resolve()
        part = path.name.startswith(ITERATION) or (path.parent / SWEEP_JSON).exists()
        return f"{path.parent.name}/{path.name}" if part else path.name

    def started(self) -> datetime | None:
        """When the run started, from the first line of its log, which a copy keeps; None without a log."""
        try:
            with self.log.open(encoding="utf-8", errors="replace") as lines:
                return datetime.fromisoformat(lines.readline().split(" ")[0])
        except (OSError, ValueError):
            return None

    def manifest(self) -> dict[str, Any]:
        """The manifest. Raises: CaiError for a folder without one, or whose manifest is damaged."""
        manifest = read_json(self.manifest_json)
        for part in ("config", "constitution", "eval_constitution"):
            if not isinstance(manifest.get(part) or {}, dict):
                raise CaiError(f"{self.manifest_json}: {part}: expected an object, found {brief(manifest[part])}")
        return manifest

    def summary(self) -> dict[str, Any] | None:
        """The summary, or None while the run is unfinished."""
        return read_json(self.summary_json) if self.summary_json.exists() else None

    def constitution(self) -> Constitution:
        """The run's constitution."""
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

    def training(self, number: int) -> Training:
        """One of the run's trainings, from 1, whether it exists or not."""
        return Training(self.path, number)

    def trainings(self) -> list[Training]:
        """The first training, whether it exists or not, and the further ones in the folder, in their order."""
        further = [int(path.name) for path in self.path.glob(f"{SEEDS}/*") if re.fullmatch("[1-9][0-9]*", path.name)]
        return [self.training(number) for number in (1, *sorted(further))]

    def evaluation(self) -> list[BeforeAfter]:
        """One row a held-out prompt answered before and after the first training; [] when the run has none yet."""
        return list(each_before_after(self.eval))

    def evaluations(self) -> list[Path]:
        """The evaluation folder of each policy that was trained; they differ in the seed of their training alone."""
        return [training.eval for training in self.trainings()]

    def policy_report(self, training: int = 1) -> PolicyReport | None:
        """The report on the policy of a training, from 1; None where there is none yet."""
        path = self.training(training).eval / REPORT
        return read_report(path) if path.exists() else None

    def policy(self) -> Path | None:
        """The policy of the first training; None where there is none, or it was not copied along."""
        return self.training(1).policy()

    def applicability(self) -> list[Applicability]:
        """What the questions of principles got for an answer; [] when the run has none."""
        return _rows(self.applicability_jsonl, Applicability)

    def answers(self) -> dict[str, dict[str, float]]:
        """P(Yes) of the questions of principles, by prompt and question."""
        answers: dict[str, dict[str, float]] = {}
        for row in self.applicability():
            answers.setdefault(row.prompt_id, {})[row.question] = row.p
        return answers

    def skipped(self) -> list[Skipped]:
        """The rows the run did not use, and why."""
        return _rows(self.skipped_jsonl, Skipped)


def open_run(name: str, runs: Path) -> RunFolder:
    """The run with a name or path.

    Raises: CaiError for none, naming the nearest; for a run of cai 0.1; or for the folder of another command.
    """
    for path in (runs / name, Path(name)):
        if is_run(path):
            return RunFolder(path)
        if command := _command(path / MANIFEST_JSON):
            known = runs_meant(name, runs)
            raise CaiError(f"{path}: holds the results of `{command}`, not a run ({known}){_instead(path, command)}")
    raise CaiError(f"no run '{without_password(name)}' in {runs}/ ({runs_meant(name, runs)})")


def _instead(path: Path, command: str) -> str:
    """What to do with the folder of a command that is not `cai run`."""
    if command != TRAIN:
        return ""
    if stage_settings(path).get("stage") == "reward":
        train = f"`cai train ppo --reward {path}/model --data PROMPTS --model MODEL`"
        return f". `cai serve` has its page, and {train} trains a policy on this reward model"
    return f". `cai serve` has its page, and `cai eval {path}` evaluates the policy"


def is_run(path: Path) -> bool:
    """Whether a folder holds a run, be it damaged, rather than another command's results.

    Raises: CaiError for a folder written by cai 0.1.
    """
    if not (path / MANIFEST_JSON).exists():
        refuse_old_format(path)
        return False
    try:
        return bool(read_json(path / MANIFEST_JSON).get("command", RUN) == RUN)
    except CaiError:
        return True  # damaged, which reading its manifest reports


def runs_meant(name: str, runs: Path) -> str:
    """For a message: the run with the most similar name, or else all there are."""
    return _suggestion(name, runs, "runs", [folder.path for folder in all_runs(runs)])


def open_sweep(name: str, runs: Path) -> Path:
    """The sweep with a name or path. Raises: CaiError for none, naming the nearest."""
    for path in (runs / name, Path(name)):
        if path.is_dir():
            return path
    shown = without_password(name)
    raise CaiError(f"no sweep '{shown}' in {runs}/ ({_suggestion(name, runs, 'sweeps', all_sweeps(runs))})")


def _suggestion(name: str, runs: Path, kind: str, paths: Sequence[Path]) -> str:
    known = sorted(str(path.relative_to(runs)) for path in paths)
    similar = difflib.get_close_matches(name.removeprefix(f"{runs}/").rstrip("/"), known, n=1)
    return f"did you mean '{similar[0]}'?" if similar else f"{kind} there: {', '.join(known) or 'none'}"


def all_runs(runs: Path) -> list[RunFolder]:
    """Every run below a folder, the newest first; those without a known start come last."""
    folders = [runs, *all_sweeps(runs)]
    patterns = (f"*/{MANIFEST_JSON}", f"*/{ITERATION}*/{MANIFEST_JSON}")
    candidates = {manifest.parent for folder in folders for pattern in patterns for manifest in folder.glob(pattern)}
    by_path = map(RunFolder, sorted(path for path in candidates if is_run(path)))
    return sorted(by_path, key=lambda run: (run.started() or datetime.min).replace(tzinfo=None), reverse=True)


def all_sweeps(runs: Path) -> list[Path]:
    """Every sweep in a folder of runs, by name."""
    return sorted(path.parent for path in runs.glob(f"*/{SWEEP_JSON}"))


def all_trainings(runs: Path) -> list[Path]:
    """Every folder of `cai train` in a folder of runs, the newest first."""
    folders = [path.parent for path in runs.glob(f"*/{MANIFEST_JSON}") if _command(path) == TRAIN]
    return sorted(folders, key=training_started, reverse=True)


def training_started(stage: Path) -> datetime:
    """When a stage was last started; what it is to train is written then."""
    paths = [path for path in (stage / "stage.json", stage / MANIFEST_JSON) if path.exists()]
    return datetime.fromtimestamp(paths[0].stat().st_mtime)


def _command(manifest: Path) -> str | None:
    try:
        return read_json(manifest).get("command") if manifest.exists() else None
    except CaiError:
        return None


def stage_order(stage: Path) -> tuple[int, str]:
    """A sort key: folders of stages, such as 2-ppo, in the order of their training."""
    first = stage.name.split("-")[0]
    return (int(first) if first.isdecimal() else 0, stage.name)


def stage_counts(stage: Path) -> dict[str, Any]:
    """What the worker of a stage in this folder counted of its rows; {} before it has read them."""
    path = stage / "data.json"
    return read_json(path) if path.exists() else {}


def stage_settings(stage: Path) -> dict[str, Any]:
    """The settings a stage was trained with; empty where its folder does not say."""
    path = stage / "stage.json"
    settings: dict[str, Any] = read_json(path).get("settings", {}) if path.exists() else {}
    return settings


def each_row_of(path: Path, model: type[AnyRow]) -> Iterator[AnyRow]:
    """The rows of a file, one at a time; none where there is no file yet."""
    if path.exists():
        yield from each_row(path, model)


def _rows(path: Path, model: type[AnyRow]) -> list[AnyRow]:
    return read_rows(path, model) if path.exists() else []
