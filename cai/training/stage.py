"""One training stage from outside: its settings by name, what it starts from, its worker process, and its result."""

import dataclasses
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, get_args

from pydantic import TypeAdapter

from cai.config.errors import CaiError, error_text
from cai.config.validation import closest_names, describe, did_you_mean
from cai.data.files import rows as rows_of
from cai.data.jsonl import file_fingerprint, parse_row, write_rows, write_text
from cai.data.manifest import FILES, Claim, exclusive, read_json, read_manifest, record_files, take, versions
from cai.data.preferences import read_preferences
from cai.data.prompts import read_completions, read_prompts
from cai.data.records import MAX_SEED, Revision, Skipped
from cai.inference.chat_template import ChatSettings
from cai.inference.models import folder_fingerprint
from cai.training import ray_options
from cai.training.distributed import visible_gpus
from cai.training.reward_folder import find_reward_model
from cai.training.setting_parts import JUDGE, LAST, models_of
from cai.training.settings import DRAFTS, Online, TrainConfig, TrainStage, judged

STAGES: dict[str, type[TrainConfig]] = {
    kind.model_fields["stage"].annotation.__args__[0]: kind for kind in get_args(get_args(TrainStage)[0])
}
"""The settings of each stage, by its name."""


def stage_settings_class(stage: str) -> type[TrainConfig]:
    """The settings of the stage with a name. Raises: CaiError for no stage, naming the nearest."""
    if stage not in STAGES:
        near = closest_names(stage, STAGES)
        hint = did_you_mean(near) if near else f"expected one of {', '.join(STAGES)}"
        raise CaiError(f"unknown stage '{stage}'; {hint}")
    return STAGES[stage]


def reward_models(config: TrainConfig, option: str) -> tuple[Path, ...]:
    """The folders of the reward models that an online stage needs; none for other stages.

    Raises: CaiError naming the `option` that sets it, for none, and as `find_reward_model`.
    """
    if not isinstance(config, Online):
        return ()
    if judged(config):
        raise CaiError(
            f"{option} {JUDGE}: the judge and its constitution are a run's: set `reward: {JUDGE}` in `train:` of a run "
            f"file; a folder of this name is {option} ./{JUDGE}"
        )
    names = models_of(config.reward)
    if LAST in names:
        raise CaiError(f"{config.stage} needs a reward model: {option} DIR, as written by `cai train reward`")
    return tuple(find_reward_model(option, name) for name in names)


def convert_data(settings: TrainConfig, data: Path, target: Path) -> list[Skipped]:
    """Convert a stage's data, in any known format, to a JSONL file of cai's rows; returns the skipped rows.

    Raises: CaiError for data without a usable row, or a row of an unknown format.
    """
    if settings.learns_from == "preferences":
        pairs, skipped = read_preferences(data)
        if not pairs:
            raise CaiError(f"{data}: no usable pair: {_reasons(skipped)}")
        write_rows(target, pairs)
        return skipped
    if settings.learns_from == "prompts":
        prompts, skipped = read_prompts(data)
        write_rows(target, prompts)
        return skipped
    if "principle_id" in next(rows_of(data), (None, dict[str, Any]()))[1]:  # revisions of a run, already filtered
        write_rows(target, (parse_row(place, value, Revision) for place, value in rows_of(data)))
        return []
    answers, skipped = read_completions(data)
    if not answers:
        raise CaiError(f"{data}: no usable completion: {_reasons(skipped)}")
    write_rows(target, answers)
    return skipped


def _reasons(skipped: list[Skipped]) -> str:
    return ", ".join(f"{n} × {reason}" for reason, n in Counter(row.reason for row in skipped).items())


AUTO = "auto"
Report = Callable[[dict[str, Any]], None]
"""Takes the events of a stage: `step`, `of`, `note`; `examples` and other counts; `warning`, `again`, `done`."""
Ask = Callable[[dict[str, Any]], dict[str, Any]]
"""Puts a question of a stage in training to what drives it; see AnswerJudge."""


def nobody(question: dict[str, Any]) -> dict[str, Any]:
    """An Ask where nothing drives the training."""
    raise CaiError(f"`reward: {JUDGE}` needs a run, whose judge is asked")


MODEL = "model"  # the folder of the trained policy or reward model, which the worker writes last
FAILURE = "error.txt"  # beside it, while the last session's word is an error
TIMING = "timing.json"  # beside it, where the last session trained several updates
UNDECIDING = {"reward", "mix", "ptx", "report_to", "fsdp", "vllm_gpu_memory_utilization", "vllm_enable_sleep_mode"}
"""Settings that the manifest leaves out: files, which count by content, and where and how a stage computes."""
OUTPUT = (MODEL, "members/*", "checkpoints/*", "metrics*.jsonl")  # patterns of what took training in a stage's folder
Settings = TypeVar("Settings", bound=TrainConfig, covariant=True)


class AnswerJudge(Protocol):
    """The judge that rewards a stage's answers, in the process that drives the training.

    The worker asks through its pipe, and imports nothing of an engine.
    """

    @property
    def identity(self) -> dict[str, Any]:
        """What decides its scores, for the stage's manifest."""

    def check(self) -> None:
        """Ask it once, before training starts. Raises: CaiError where it cannot rate answers."""

    def reply(self, question: dict[str, Any]) -> dict[str, Any]:
        """To `{"prompts": [ids]}` the ids of those whose answers it cannot score, with reasons, as `refused`.

        To `{"answers": [[prompt id, text], …]}` a JudgedAnswer's fields for each, as `judged`.
        """


class JudgedAnswer(NamedTuple):
    """How the judge rates an answer; `score` is from −1 to 1, and None where it was refused for a `reason`."""

    score: float | None
    ratings: dict[str, float]
    """From 1 to 9, by principle."""
    non_option_mass: float
    """The mean probability outside the numbers."""
    reason: str = ""


@dataclass(frozen=True)
class StageSpec(Generic[Settings]):
    """What to train, from what, and where."""

    settings: Settings
    data: Path
    """A JSONL file of the rows that the stage learns from."""
    model: Path
    """The folder of the policy that training starts from."""
    folder: Path
    """Where the stage writes; the result is `folder/model`."""
    seed: int = 0
    reward: Path | None = None
    """The folder of the reward model, for the stages that need one; of several the first that the settings name."""
    chat: ChatSettings | None = None
    """The chat template's settings of `model`, with which the result is saved; None for those that its folder has."""
    reference: Path | None = None
    """The folder of the policy that the KL is taken from; None for `model`. Read by ppo and dpo."""
    launcher: str = ""
    """A command that starts the worker in place of Python, such as `torchrun --nproc_per_node 2`; or `auto`."""
    other_rewards: tuple[Path, ...] = ()
    """The folders of further reward models, in the order in which the settings name them."""
    judge: AnswerJudge | None = None
    """What rewards answers in place of a reward model. It stays in this process: stage.json has nothing of it."""

    def __post_init__(self) -> None:
        """Raises: CaiError for a seed out of range."""
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed <= MAX_SEED:
            raise CaiError(f"seed: expected a whole number from 0 to {MAX_SEED}, found {describe(self.seed)}")

    @classmethod
    def read(cls, path: Path) -> "StageSpec[Any]":
        """The specification that a stage.json holds; the launcher is not part of it."""
        fields = read_json(path)
        try:
            settings: TrainConfig = TypeAdapter(TrainStage).validate_python(fields["settings"])
            data, model, folder = (Path(fields[key]) for key in ("data", "model", "folder"))
            reward = Path(fields["reward"]) if fields["reward"] else None
            others = tuple(map(Path, fields.get("other_rewards", ())))
            chat = ChatSettings.model_validate(fields["chat"]) if fields.get("chat") else None
            reference = Path(fields["reference"]) if fields.get("reference") else None
            return StageSpec(
                settings, data, model, folder, fields["seed"], reward, chat, reference, other_rewards=others
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CaiError(f"{path}: not the specification of a training stage: {error!r}") from error

    def write(self, path: Path) -> None:
        """Write stage.json, which the worker reads."""
        fields = {
            "settings": self.settings.model_dump(),
            "seed": self.seed,
            "data": str(self.data),
            "model": str(self.model),
            "folder": str(self.folder),
            "reward": str(self.reward) if self.reward else None,
            **({"other_rewards": [str(path) for path in self.other_rewards]} if self.other_rewards else {}),
            "chat": self.chat.identity() if self.chat else None,
            "reference": str(self.reference) if self.reference else None,
        }
        write_text(path, json.dumps(fields, indent=2))

    def claim(self) -> Claim:
        """The stage's folder with its manifest; files count by content, not by name."""
        files = {"data": self.data, **{name: Path(file) for name, file in self.settings.files.items()}}
        models = {"model": self.model, "reward": self.reward, "reference": self.reference}
        models |= {f"reward {number}": path for number, path in enumerate(self.other_rewards, start=2)}
        contents = {key: file_fingerprint(path) for key, path in files.items()}
        contents |= {key: folder_fingerprint(path) for key, path in models.items() if path is not None}
        manifest = {
            "command": "cai train",
            "settings": self.settings.model_dump(mode="json", exclude=UNDECIDING),
            "seed": self.seed,
            **contents,
            **({"mix": DRAFTS} if getattr(self.settings, "mix", None) == DRAFTS else {}),
            **({"chat": self.chat.identity()} if self.chat else {}),
            **({"judge": self.judge.identity} if self.judge else {}),
            **({"sum": _weights(self.settings)} if isinstance(getattr(self.settings, "reward", None), list) else {}),
            "where": {key: str(path) for key, path in models.items() if path is not None},
            "versions": versions(),
        }
        inputs = [*files.values(), *(path for path in models.values() if path is not None)]
        return Claim(self.folder, manifest, MODEL, inputs, trained=OUTPUT)


def _weights(settings: Any) -> list[dict[str, Any]]:
    """The sources of a reward, without the names of models, which count by content."""
    return [part.model_dump(exclude={"model"}) for part in settings.reward]


def run_stage(spec: StageSpec[Any], report: Report, replace: bool = True, keep_data: bool = False) -> Path:
    """Train one stage in a worker process; returns the folder of the policy or reward model.

    A finished stage with the same settings, data, models and seed is not trained again; an interrupted one resumes from
    its last checkpoint; one whose inputs changed starts afresh, if `replace`. With `keep_data` the stage learns from a
    copy of the data that stays in its folder, `rows.jsonl`.
    Raises: CaiError when the worker fails, or ends without a model; its log is `train.log` in the folder. And as `take`
    does for a folder of something else, or of a finished stage with other inputs without `replace`.
    """
    folder, claim = spec.folder, spec.claim()
    with exclusive(folder):
        if _is_finished(claim):
            report(read_json(folder / "data.json"))
            report({"done": "already trained"})
            _remove_spent(folder)  # a process killed after its last write left it
            if FILES not in (read_manifest(folder) or {}):  # or trained by an earlier version
                _record(claim)
            return folder / MODEL
        changes = claim.changes()
        take(claim, replace)
        if changes:
            report({"again": changes})
        report({"starts": True})
        with _recording_errors(folder / FAILURE):
            _train(spec, claim, report, keep_data)
    return folder / MODEL


@contextmanager
def _recording_errors(file: Path) -> Iterator[None]:
    """Keep the error that ends the block in a file, and that of no earlier session."""
    file.unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        with suppress(CaiError):  # a full disk has no room for its own error
            write_text(file, f"{error_text(error)}\n")
        raise


def _train(spec: StageSpec[Any], claim: Claim, report: Report, keep_data: bool) -> None:
    """Train a stage in a folder that this process holds, with its manifest in it."""
    folder, data = spec.folder, spec.data
    if keep_data:
        beside = folder / "rows.jsonl.part"
        shutil.copyfile(data, beside)
        data = beside.replace(folder / "rows.jsonl")
    stage_file = folder / "stage.json"
    dataclasses.replace(spec, data=data).write(stage_file)

    clock = _Clock()

    def keep_counts(event: dict[str, Any]) -> None:
        if "examples" in event:  # reported again when the finished stage is not trained again
            write_text(folder / "data.json", json.dumps(event))
        if "step" in event:
            clock.update()
        report(event)

    command = [*worker_python(spec.launcher), "-m", "cai.training.worker", str(stage_file)]
    log = folder / "train.log"
    if spec.judge is None:
        follow(command, log, keep_counts)
    else:
        follow(command, log, keep_counts, spec.judge.reply)
    if not claim.is_finished():
        raise CaiError(
            f"{folder / MODEL}: expected the trained model there, found nothing: `{spec.launcher or 'the worker'}` "
            f"ended without training; {_end(log)}"
        )
    if timing := clock.timing():
        write_text(folder / TIMING, json.dumps(timing))
    _remove_spent(folder)
    _record(claim)


def _record(claim: Claim) -> None:
    record_files(claim, {MODEL: folder_fingerprint(claim.folder / MODEL)})


class _Clock:
    """Takes the time of a training's updates, from which the next one is forecast."""

    def __init__(self) -> None:
        self._begun = self._first = self._last = time.monotonic()
        self._updates = 0

    def update(self) -> None:
        """An update has ended."""
        self._last, self._updates = time.monotonic(), self._updates + 1
        if self._updates == 1:
            self._first = self._last

    def timing(self) -> dict[str, float] | None:
        """Seconds of an update, and of all else; the first update, which may compile, counts as the others. Or None."""
        if self._updates < 2:
            return None
        each = (self._last - self._first) / (self._updates - 1)
        other = time.monotonic() - self._begun - each * self._updates
        return {"updates": self._updates, "update_seconds": each, "other_seconds": max(0.0, other)}


def checkpoint_update(folder: Path) -> int:
    """The update from which an interrupted stage resumes; 0 without a complete checkpoint."""
    states = [path.parent for path in folder.glob("checkpoints/*/*state.json")]  # the last file of each
    numbers = [path.name.rpartition("-")[2] for path in states]  # beside them may be one in writing: update-000004.part
    return max((int(number) for number in numbers if number.isdecimal()), default=0)


def _remove_spent(folder: Path) -> None:
    """Remove what is large, and of no use once the policy is saved."""
    for spent in ("checkpoints", "dataset", "members", ray_options.SCRATCH):
        shutil.rmtree(folder / spent, ignore_errors=True)


def is_trained(spec: StageSpec[Any]) -> bool:
    """Whether `run_stage` would find the stage finished."""
    return _is_finished(spec.claim())


def _is_finished(claim: Claim) -> bool:
    return claim.is_finished() and read_manifest(claim.folder) is not None and not claim.changes()


def worker_python(launcher: str) -> list[str]:
    """The command that runs a Python module as a worker: this Python, or the launcher; CaiError if it is not found.

    `auto` is torchrun with a process for each visible GPU, where there are several.
    """
    if launcher.strip() == AUTO:
        gpus = len(visible_gpus())
        launcher = f"torchrun --standalone --nproc_per_node {gpus}" if gpus > 1 else ""
    if not launcher.strip():
        return [sys.executable]
    example = "expected a command such as torchrun --nproc_per_node 2"
    if "\0" in launcher:
        raise CaiError(f"launcher: holds a NUL character; {example}")
    try:
        first, *others = shlex.split(launcher)
    except ValueError as error:
        raise CaiError(f"launcher: {launcher!r}: {str(error).lower()}; {example}") from None
    beside_python = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    if first == ray_options.NAME:
        return ray_options.command(others)
    program = shutil.which(first, path=beside_python)
    if program is None:
        raise CaiError(f"launcher: '{first}' not found; {example}")
    return [program, *others]


def follow(command: list[str], log: Path, report: Report, reply: Ask | None = None) -> None:
    """Run a worker process to its end, its events through `report`, and into `log` all else that it writes.

    A question of the worker's, an event with `ask`, gets its `reply` as a line of its standard input.

    Raises: CaiError when it fails.
    """
    with log.open("a", encoding="utf-8") as output:
        worker = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output, encoding="utf-8", errors="replace"
        )
        fault = ""
        try:
            assert worker.stdout is not None and worker.stdin is not None
            for line in worker.stdout:
                event = _event(line)
                if event is None:  # a line of the launcher's own
                    output.write(line)
                    output.flush()
                    continue
                if reply is not None and "ask" in event:
                    with suppress(BrokenPipeError):  # it died meanwhile, and its status says so
                        worker.stdin.write(json.dumps(reply(event["ask"])) + "\n")
                        worker.stdin.flush()
                    continue
                fault = event.get("error", fault)
                report(event)
            status = worker.wait()
        except BaseException:
            worker.terminate()
            worker.wait()
            raise
    if fault:
        raise CaiError(fault)
    if status != 0:
        raise CaiError(f"training stopped with status {status}; {_end(log)}")


def _event(line: str) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) else None


def _end(log: Path) -> str:
    last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
    return f"{log} ends: {last[0] if last else '(nothing)'}"
