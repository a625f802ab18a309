"""A run whose judge must do well on labelled pairs first."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from rich.console import Console

from cai.config.errors import CaiError
from cai.data.jsonl import read_rows
from cai.data.records import Skipped
from cai.inference.engine import Choose, Generate, ScriptedEngine
from cai.inference.reporter import Reporter
from cai.runs.folder import RunFolder
from cai.runs.pipeline import execute
from cai.runs.plan import make_plan
from cai.stats.logistic import logit
from tests.conftest import scripted, write_workspace

Weigh = Callable[[Choose], Sequence[float]]


def knows(sure: float, wrong: str = "nowhere") -> Weigh:
    """A judge that finds the good answer with this probability, and the bad one where `wrong` is found in the question.

    Of other answers it likes one a little, by its text.
    """

    def weigh(request: Choose) -> Sequence[float]:
        question = request.messages[0]["content"]
        if "good answer" in question:
            p = 1 - sure if re.search(wrong, question, re.MULTILINE) else sure
            return (p, 1 - p) if "<answer A>\ngood answer" in question else (1 - p, p)
        first, second = re.findall(r"^<answer [AB]>\n(.*)$", question, re.MULTILINE)
        return (0.6, 0.4) if first > second else (0.4, 0.6)

    return weigh


def run_to_end(
    folder: Path, model: Path, gate: str, weigh: Weigh, engines: list[ScriptedEngine], name: str | None = None
) -> RunFolder:
    pairs = [
        {"prompt": f"labelled question {i}", "chosen": f"good answer {i}", "rejected": f"bad answer {i}"}
        for i in range(40)
    ]
    (folder / "labelled.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    extra = f"judge_gate: {{data: {folder / 'labelled.jsonl'}, {gate}}}\n"
    plan = make_plan(write_workspace(folder, model, extra=extra), [], name, folder / "runs")
    execute(plan, Reporter(Console(quiet=True)), False, scripted(engines, weigh=weigh))
    return plan.folder


def test_a_judge_that_does_well_lets_the_run_go_on(tmp_path: Path, model_folder: Path) -> None:
    folder = run_to_end(tmp_path, model_folder, "accuracy: 0.9, position_bias: 0.1", knows(0.9), [])
    assert folder.summary() is not None
    report = json.loads((folder.judge / "judge.json").read_text(encoding="utf-8"))
    assert report["accuracy"]["mean"] == 1.0


def test_bounds_inside_the_intervals_are_named_as_undecided(tmp_path: Path, model_folder: Path) -> None:
    gate = "accuracy: 0.75, ece: 0.1"
    folder = run_to_end(tmp_path, model_folder, gate, knows(0.9, wrong="question \\d*[05]$"), [])  # right on 32 of 40
    log = (folder.path / "log.txt").read_text(encoding="utf-8")
    assert re.search(
        r"accuracy 0\.800 \[.*\]; too few pairs to tell whether accuracy is at least 0\.75: 0\.800 \[", log
    )
    assert re.search(r"; too few pairs to tell whether ece is at most 0\.1: 0\.\d+ \[0\.0\d+, 0\.[1-9]\d+\]; ", log)
    surer = run_to_end(tmp_path, model_folder, "accuracy: 0.5", knows(0.9, wrong="question \\d*[05]$"), [], "surer")
    assert "too few pairs" not in (surer.path / "log.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("gate", "sure", "said"),
    [
        ("accuracy: 0.9", 0.2, r"accuracy 0\.000 .*, required at least 0\.9"),
        ("ece: 0.1", 0.6, r"ece 0\.38\d .*, required at most 0\.1"),
        ("accuracy: 0.9, ece: 0.1", 0.2, r"accuracy .*; ece "),
    ],
)
def test_one_that_does_not_stops_it_before_anything_is_written(
    tmp_path: Path, model_folder: Path, gate: str, sure: float, said: str
) -> None:
    engines: list[ScriptedEngine] = []
    with pytest.raises(CaiError, match=rf"judge_gate: the judge fails on .*labelled\.jsonl: {said}"):
        run_to_end(tmp_path, model_folder, gate, knows(sure), engines)
    assert not any(isinstance(request, Generate) for engine in engines for request in engine.requests)
    assert not RunFolder(tmp_path / "runs/test").preferences_jsonl.exists()


def test_the_fitted_temperature_makes_the_runs_labels(tmp_path: Path, model_folder: Path) -> None:
    folder = run_to_end(tmp_path, model_folder, "calibrate: true", knows(0.9, wrong="question \\d*[05]$"), [])
    temperature = json.loads((folder.judge / "judge.json").read_text(encoding="utf-8"))["temperature"]
    assert 1.2 < temperature < 10  # nine in ten sure, and wrong more often than one in ten times
    judged = [row for row in folder.preferences() if row.source == "judge"]
    assert judged
    for row in judged:
        assert [v.p for v in row.verdicts] == pytest.approx([0.6] * len(row.verdicts))
        assert logit(row.p) == pytest.approx(logit(0.6) / temperature, abs=1e-6)


def test_a_fitted_temperature_that_does_not_help_on_the_other_half_is_not_applied(
    tmp_path: Path, model_folder: Path
) -> None:
    folder = run_to_end(tmp_path, model_folder, "calibrate: true", knows(0.9), [])  # never wrong
    assert "labels keep the judge's temperature" in (folder.path / "log.txt").read_text(encoding="utf-8")
    judge_json = json.loads((folder.judge / "judge.json").read_text(encoding="utf-8"))
    assert "temperature" not in judge_json and judge_json["calibration"]["at_bound"]
    judged = [row for row in folder.preferences() if row.source == "judge"]
    assert judged
    for row in judged:
        assert row.p == pytest.approx(0.6)


def test_the_gates_file_is_part_of_what_a_run_was_made_from(tmp_path: Path, model_folder: Path) -> None:
    run_to_end(tmp_path, model_folder, "accuracy: 0.9", knows(0.9), [])
    with (tmp_path / "labelled.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"prompt": "one more", "chosen": "good answer", "rejected": "bad answer"}\n')
    plan = make_plan(tmp_path / "run.yaml", [], None, tmp_path / "runs")
    with pytest.raises(CaiError, match="judge_gate: "):
        execute(plan, Reporter(Console(quiet=True)), False, scripted())


def test_a_gate_without_its_file_is_refused_before_anything_starts(tmp_path: Path, model_folder: Path) -> None:
    run_file = write_workspace(tmp_path, model_folder, extra="judge_gate: {data: nowhere.jsonl, accuracy: 0.5}\n")
    with pytest.raises(CaiError, match=r"judge_gate\.data: 'nowhere\.jsonl' not found"):
        make_plan(run_file, [], None, tmp_path / "runs")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ('{"prompt": "p", "chosen": "good answer", "rejected": "bad answer"}\n{"prompt": "p"', r":2: not valid JSON"),
        ('{"prompt": "p", "answer": "a"}', r":1: unknown format of a preference \(found prompt, answer\)"),
        ('{"prompt": "p", "chosen": "", "rejected": "a", "messages": []}', r": nothing to judge in this file"),
    ],
)
def test_an_unusable_gate_file_is_an_error_before_anything_is_written(
    tmp_path: Path, model_folder: Path, rows: str, said: str
) -> None:
    data = tmp_path / "labelled.jsonl"
    data.write_text(rows, encoding="utf-8")
    run_file = write_workspace(tmp_path, model_folder, extra=f"judge_gate: {{data: {data}, accuracy: 0.5}}\n")
    with pytest.raises(CaiError, match=rf"run\.yaml: judge_gate\.data: .*labelled\.jsonl{said}"):
        make_plan(run_file, [], None, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("control", ["text", "refuse"])
def test_the_gate_and_the_run_treat_control_tokens_alike(tmp_path: Path, model_folder: Path, control: str) -> None:
    pairs = [{"prompt": f"q{i}", "chosen": "good answer", "rejected": "no" + "<|im_end|>" * (i > 8)} for i in range(10)]
    (tmp_path / "labelled.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    run_file = write_workspace(tmp_path, model_folder, extra=f"judge_gate: {{data: {tmp_path / 'labelled.jsonl'}}}\n")
    plan = make_plan(run_file, [f"engine.control_tokens={control}"], None, tmp_path / "runs")
    engines: list[ScriptedEngine] = []
    execute(plan, Reporter(Console(quiet=True)), False, scripted(engines))
    asked = [message["content"] for engine in engines for request in engine.requests for message in request.messages]
    assert any("<|im_end|>" in text for text in asked) == (control == "text")
    skipped = [row.reason for row in read_rows(plan.folder.judge / "skipped.jsonl", Skipped)]
    assert any("control token '<|im_end|>'" in reason for reason in skipped) == (control == "refuse")
    # the default is no part of the manifest, as in one of a version without the setting
    settings = plan.folder.manifest()["config"]["engine"]
    assert settings.get("control_tokens") == (None if control == "text" else control)
