"""The worker of a stage: how it is started and followed, and what its errors say."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cai.config.errors import CaiError
from cai.data.manifest import exclusive, read_manifest, write_manifest
from cai.inference.reporter import Reporter
from cai.runs.pipeline import train_stage
from cai.training import stage, worker
from cai.training.settings import SFTConfig
from cai.training.stage import StageSpec, follow, is_trained, run_stage
from tests.training.test_settings import dpo, preferences


@pytest.mark.slow
def test_a_worker_trains_and_reports_its_progress(tmp_path: Path, tiny_model: Path) -> None:
    events: list[dict[str, Any]] = []
    data = preferences(tmp_path / "preferences.jsonl")
    policy = run_stage(StageSpec(dpo(), data, tiny_model, tmp_path / "dpo"), events.append)
    assert (policy / "model.safetensors").exists()
    assert events[:2] == [{"starts": True}, {"examples": 8, "too_long": [], "undecided": []}]
    steps = [event["step"] for event in events if "step" in event]
    assert steps[-1] == 4 and steps == sorted(steps)
    assert (tmp_path / "dpo/train.log").exists()
    assert not (tmp_path / "dpo/checkpoints").exists()


def test_a_launcher_starts_the_worker_in_place_of_python(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def launched(command: list[str], log: Path, report: object) -> None:
        commands.append(command)
        (tmp_path / "dpo/model").mkdir()

    monkeypatch.setattr(stage, "follow", launched)
    spec = StageSpec(dpo(), preferences(tmp_path / "p.jsonl"), tiny_model, tmp_path / "dpo")
    run_stage(
        StageSpec(spec.settings, spec.data, tiny_model, spec.folder, launcher="torchrun --nproc_per_node 2"), print
    )
    [[program, *arguments]] = commands
    assert Path(program).name == "torchrun"
    stage_file = tmp_path / "dpo/stage.json"
    assert arguments == ["--nproc_per_node", "2", "-m", "cai.training.worker", str(stage_file)]
    assert StageSpec.read(stage_file) == spec


def process(source: str) -> list[str]:
    """A command that takes a worker's place."""
    return [sys.executable, "-c", f"import json, sys, time\n{source}"]


def serving(work: str, folder: Path) -> list[str]:
    """A worker that does `work`, an expression, in place of training."""
    return process(
        f"from pathlib import Path\nfrom cai.config.errors import CaiError\nfrom cai.training.worker import serve\n"
        f"def work(report, ask): {work}\nsys.exit(serve(work, Path({str(folder)!r})))"
    )


@pytest.mark.slow
def test_a_worker_that_fails_is_reported_with_its_log(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    with pytest.raises(CaiError, match=r"training stopped with status 1; .*train\.log ends: ValueError: nonsense"):
        follow(serving("raise ValueError('nonsense')", tmp_path), log, print)
    assert "Traceback" in log.read_text()


def test_an_error_that_the_user_can_fix_is_the_workers_own_message(tmp_path: Path) -> None:
    with pytest.raises(CaiError, match=r"^no prompt is shorter than max_length$"):
        follow(
            serving("raise CaiError('no prompt is shorter than max_length')", tmp_path), tmp_path / "train.log", print
        )


def test_what_a_library_prints_goes_to_the_log_and_not_between_the_events(tmp_path: Path) -> None:
    log, events = tmp_path / "train.log", list[dict[str, Any]]()
    follow(serving("report({'step': 1}); print('Loading weights'); report({'step': 2})", tmp_path), log, events.append)
    assert events == [{"step": 1}, {"step": 2}]
    assert "Loading weights" in log.read_text()


def test_a_worker_asks_its_parent_and_reads_the_reply(tmp_path: Path) -> None:
    questions: list[dict[str, Any]] = []
    events: list[dict[str, Any]] = []

    def reply(question: dict[str, Any]) -> dict[str, Any]:
        questions.append(question)
        return {"sum": sum(question["numbers"]), "text": "ä\n"}

    work = "[report(ask({'numbers': [1, n]})) for n in (2, 3)]"
    follow(serving(work, tmp_path), tmp_path / "train.log", events.append, reply)
    assert questions == [{"numbers": [1, 2]}, {"numbers": [1, 3]}]
    assert events == [{"sum": 3, "text": "ä\n"}, {"sum": 4, "text": "ä\n"}]


def test_an_error_in_the_reply_ends_the_worker(tmp_path: Path) -> None:
    def reply(question: dict[str, Any]) -> dict[str, Any]:
        raise CaiError("the judge died")

    work = f"[ask({{}}), open('{tmp_path}/alive', 'w')]"
    with pytest.raises(CaiError, match="the judge died"):
        follow(serving(work, tmp_path), tmp_path / "train.log", print, reply)
    assert not (tmp_path / "alive").exists()


def test_a_worker_ends_with_the_command_that_started_it(tmp_path: Path) -> None:
    def interrupt(event: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    source = f"print('{{}}', flush=True); time.sleep(60); open('{tmp_path}/alive', 'w')"
    with pytest.raises(KeyboardInterrupt):
        follow(process(source), tmp_path / "train.log", interrupt)
    assert not (tmp_path / "alive").exists()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (CaiError("line 3: wrong"), "line 3: wrong"),
        (OSError("No space left on device"), "{folder}: the disk is full; make room and run it again"),
        (PermissionError(13, "Permission denied", "a.json"), "a.json: [Errno 13] Permission denied: 'a.json'"),
        (KeyError("x"), None),
    ],
)
def test_a_worker_words_the_errors_that_are_no_defects(tmp_path: Path, error: Exception, message: str | None) -> None:
    text = worker._user_message(error, tmp_path)
    assert (text is None) if message is None else (text or "").startswith(message.format(folder=tmp_path))


def test_a_stage_file_holds_the_whole_specification(tmp_path: Path) -> None:
    spec = StageSpec(dpo(), tmp_path / "rows.jsonl", tmp_path / "model", tmp_path, seed=3, reward=tmp_path / "reward")
    spec.write(tmp_path / "stage.json")
    assert StageSpec.read(tmp_path / "stage.json") == spec


@pytest.mark.slow
@pytest.mark.usefixtures("no_worker")
def test_a_stage_is_finished_until_what_decides_it_changes(tmp_path: Path, tiny_model: Path) -> None:
    data = preferences(tmp_path / "preferences.jsonl")
    spec = StageSpec(dpo(), data, tiny_model, tmp_path / "dpo")
    assert not is_trained(spec)
    run_stage(spec, print)
    copied = data.rename(tmp_path / "elsewhere.jsonl")
    assert is_trained(replace(spec, data=copied))
    assert is_trained(replace(spec, data=copied, settings=dpo(report_to=["tensorboard"])))
    assert not is_trained(replace(spec, data=copied, seed=1))
    manifest = read_manifest(tmp_path / "dpo")
    assert manifest is not None and manifest["command"] == "cai train"
    preferences(copied, 9)
    assert not is_trained(replace(spec, data=copied))
    with pytest.raises(CaiError, match=r"holds finished results of `cai train` with other settings:\n  data: content"):
        run_stage(replace(spec, data=copied), print, replace=False)


def test_checkpoints_of_other_settings_are_refused_unless_replaced(tmp_path: Path, tiny_model: Path) -> None:
    spec = StageSpec(dpo(), preferences(tmp_path / "preferences.jsonl"), tiny_model, tmp_path / "dpo")
    checkpoint = spec.folder / "checkpoints/checkpoint-3"
    checkpoint.mkdir(parents=True)
    write_manifest(spec.folder, spec.claim().manifest)
    with pytest.raises(CaiError, match=r"holds unfinished training of `cai train` with other settings:\n  seed: 0 → 1"):
        run_stage(replace(spec, seed=1), print, replace=False)
    assert checkpoint.exists()


@pytest.mark.slow
@pytest.mark.usefixtures("no_worker")
def test_a_stage_that_is_trained_again_reports_what_changed(tmp_path: Path, tiny_model: Path) -> None:
    spec = StageSpec(dpo(), preferences(tmp_path / "preferences.jsonl"), tiny_model, tmp_path / "dpo")
    said: list[str] = []
    reporter = Reporter(Console(quiet=True))
    reporter.say = said.append  # type: ignore[method-assign, assignment]
    train_stage("1-dpo", spec, reporter)
    assert not [line for line in said if "trained again" in line]
    train_stage("1-dpo", replace(spec, seed=1, settings=dpo(beta=0.2)), reporter)
    [line] = [line for line in said if "trained again" in line]
    assert line == "  1-dpo: trained again, since these changed: settings.beta: 0.1 → 0.2; seed: 0 → 1"
    shutil.rmtree(spec.folder / "model")  # as if interrupted
    train_stage("1-dpo", spec, reporter)
    assert said.count("  1-dpo: trained again, since these changed: settings.beta: 0.2 → 0.1; seed: 1 → 0") == 1


@pytest.mark.slow
@pytest.mark.usefixtures("no_worker")
def test_a_stage_that_learns_from_a_file_in_its_own_folder_does_not_clear_it(tmp_path: Path, tiny_model: Path) -> None:
    spec = StageSpec(dpo(), preferences(tmp_path / "p.jsonl"), tiny_model, tmp_path / "dpo")
    run_stage(spec, print)
    own = preferences(tmp_path / "dpo/more.jsonl", 9)
    with pytest.raises(CaiError, match="which would be cleared; copy it elsewhere first"):
        run_stage(replace(spec, data=own), print)
    assert own.exists()
    assert is_trained(spec)


def test_two_commands_do_not_train_in_one_folder(tmp_path: Path, tiny_model: Path) -> None:
    spec = StageSpec(dpo(), preferences(tmp_path / "p.jsonl"), tiny_model, tmp_path / "dpo")
    with exclusive(spec.folder), pytest.raises(CaiError, match="another process is working in this folder"):
        run_stage(spec, print)


@pytest.mark.parametrize("left", ["checkpoints", "dataset", "members"])
def test_what_a_killed_process_left_beside_a_finished_policy_is_removed(
    left: str, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(command: list[str], log: Path, report: stage.Report) -> None:
        report({"examples": 1})
        (tmp_path / "dpo/model").mkdir()

    monkeypatch.setattr(stage, "follow", train)
    spec = StageSpec(dpo(), preferences(tmp_path / "p.jsonl"), tiny_model, tmp_path / "dpo")
    run_stage(spec, lambda event: None)
    (tmp_path / "dpo" / left).mkdir()  # killed before it was removed
    run_stage(spec, lambda event: None)
    assert not (tmp_path / "dpo" / left).exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", r"stage\.json: not valid JSON"),
        ("{}", r"stage\.json: not the specification of a training stage: KeyError\('settings'\)"),
        ('{"settings": {"stage": "x"}}', r"stage\.json: not the specification of a training stage"),
    ],
)
def test_a_damaged_stage_file_is_named(tmp_path: Path, content: str, expected: str) -> None:
    (tmp_path / "stage.json").write_text(content)
    with pytest.raises(CaiError, match=expected):
        StageSpec.read(tmp_path / "stage.json")


def test_a_damaged_record_of_a_finished_stage_is_named(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    spec = StageSpec(SFTConfig(stage="sft"), tmp_path / "rows.jsonl", model_folder, tmp_path / "stage")
    monkeypatch.setattr(stage, "follow", lambda command, log, report: (spec.folder / "model").mkdir())
    run_stage(spec, lambda event: None)
    (spec.folder / "data.json").write_text('{"examples')
    with pytest.raises(CaiError, match=r"stage/data\.json: not valid JSON"):
        run_stage(spec, lambda event: None)
