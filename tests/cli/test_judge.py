"""`cai judge` and `cai judge-eval`."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cai.cli.console import show
from cai.cli.judge import _parts
from cai.data.jsonl import read_rows
from cai.data.records import Preference, Ranking
from cai.evaluation.judge_eval import Extras, evaluate_judge
from cai.feedback.label import label_file
from cai.inference import vllm_settings
from cai.inference.engine import Engine, EngineConfig
from cai.inference.models import Model
from cai.inference.reporter import Reporter
from tests.cli.test_cli import cai
from tests.conftest import ROOT, SIXTEEN, scripted
from tests.feedback.test_label import another, by_goodness, pair, written


@pytest.fixture
def given(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Options for a file of eight pairs, and an engine that needs no model."""
    opened = scripted(weigh=by_goodness)
    monkeypatch.setattr(label_file, "__defaults__", (opened,))
    monkeypatch.setattr(evaluate_judge, "__defaults__", (Extras(), opened))
    data = written(tmp_path, *[pair(i, 2, worse) for i, worse in enumerate((-0.6, 0.1, 1.3, 2.5, 3.7, 4.9, 6.1, 2))])
    return [
        "--data", data, "--judge", model_folder, "--constitution", str(SIXTEEN),
        "--out", tmp_path / "out", "--runs", tmp_path / "runs",
    ]  # fmt: skip


def test_a_file_is_labelled_and_the_totals_are_printed(
    given: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cai(monkeypatch, "judge", *given) == 0
    out = capsys.readouterr().out
    assert "7 pairs labelled in" in out  # the eighth has two equal answers
    assert "56 new calls, 0 cache hits" in out  # 4 principles in two orders
    for line in (
        r"P\(chosen better\) +0\.",
        r"position bias +0\.286",
        r"non-option probability mass +0\.200",
        r"agreement with the input labels +0\.429",
        r"skipped: 1 × samples identical",
    ):
        assert re.search(line, out), line
    assert f"preferences.jsonl, skipped.jsonl and judge.json are in {tmp_path}/out/" in out
    assert f"Next\n  cai train reward --data {tmp_path}/out/preferences.jsonl --model MODEL" in out
    assert cai(monkeypatch, "judge", *given, "--set", "judge.principles=all", "--replace") == 0
    assert "224 new calls" not in capsys.readouterr().out  # the verdicts of the four principles are cache hits
    assert {len(r.verdicts) for r in read_rows(tmp_path / "out/preferences.jsonl", Preference)} == {16}


def test_a_warning_of_a_metric_says_what_it_measures(given: list[object], tmp_path: Path, monkeypatch: Any) -> None:
    assert cai(monkeypatch, "judge", *given) == 0
    labelling = json.loads((tmp_path / "out/judge.json").read_text(encoding="utf-8"))
    labelling["metrics"]["position_bias"]["mean"] = 0.5
    console = Console(width=120)
    with console.capture() as printed:
        for part in _parts(labelling):
            show(console, part)
    assert "! position bias is 0.500: verdicts that prefer the same position in both orders\n" in re.sub(
        " +\n", "\n", printed.get()
    )


def test_a_file_of_which_no_pair_can_be_judged_is_no_success(
    given: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path, {"prompt": "q", "responses": ["same", "same"]})
    assert cai(monkeypatch, "judge", *given) == 1
    assert f"{tmp_path}/out: no rows were produced; all were skipped: 1 × samples identical" in capsys.readouterr().err


def test_settings_of_the_judges_engine_reach_it(
    given: list[object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[EngineConfig] = []

    def open_engine(model: Model, fingerprint: str, settings: EngineConfig) -> Engine:
        opened.append(settings)
        return scripted(weigh=by_goodness)(model, fingerprint, settings)

    monkeypatch.setattr(vllm_settings, "find_spec", lambda _: None)  # to look up its arguments, vLLM is imported
    monkeypatch.setattr(label_file, "__defaults__", (open_engine,))
    engine = ("--set", "engine.max_model_len=512", "--set", "judge.engine.vllm.dtype=half")
    assert cai(monkeypatch, "judge", *given, *engine) == 0
    assert [(settings.max_model_len, settings.vllm) for settings in opened] == [(512, {"dtype": "half"})]
    assert cai(monkeypatch, "judge", *given, "--set", "engine.vllm.worker_cls=a.B") == 2
    assert "--set engine.vllm.worker_cls: lets vLLM import code" in capsys.readouterr().err


def test_a_judge_that_is_set_against_its_own_labels_is_a_warning_first(
    given: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cai(monkeypatch, "judge", *given)
    labelled = tmp_path / "mine.jsonl"
    labelled.write_text((tmp_path / "out/preferences.jsonl").read_text(encoding="utf-8"), encoding="utf-8")
    capsys.readouterr()
    assert cai(monkeypatch, "judge-eval", *given[2:], "--data", labelled, "--out", tmp_path / "again") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert out.index("! 7 of 7 rows were labelled by this very judge") < out.index("7 pairs of 7 prompts")
    assert cai(monkeypatch, "judge-eval", *given, "--replace", "--out", tmp_path / "people") == 0
    assert "by this very judge" not in capsys.readouterr().out


def test_judge_eval_attacks_the_judge_on_request(
    given: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cai(monkeypatch, "judge-eval", *given, "--injection", columns=80) == 0
    out = capsys.readouterr().out
    report = out[out.index("pairs of") : out.index("Warnings")]
    assert max(map(len, report.splitlines())) <= 80
    for attack, meaning in (("address", "speaks to the judge"), ("control", "forges turns with control tokens")):
        assert re.search(rf"\n +{attack} +\+0\.000 \[-0\.\d+, \+0\.\d+\] +{meaning} *\n", out), attack
    assert (tmp_path / "out/injection.jsonl").exists()
    assert cai(monkeypatch, "judge-eval", *given, "--replace") == 0
    assert "gain in p" not in capsys.readouterr().out
    assert not (tmp_path / "out/injection.jsonl").exists()


def test_sets_of_responses_are_ranked(
    given: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path, {"prompt": "Why?", "responses": ["is 0", "is 2", "is 1"]})
    assert cai(monkeypatch, "judge", *given, "--set", "ask=choice") == 0
    assert "3 pairs labelled, 1 ranking in" in capsys.readouterr().out
    assert read_rows(tmp_path / "out/rankings.jsonl", Ranking)[0].responses == ["is 2", "is 1", "is 0"]


def test_a_judge_is_set_against_labels_and_the_report_is_printed(
    given: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cai(monkeypatch, "judge-eval", *given, "--calibrate", "--set", "principles=1") == 0
    out = capsys.readouterr().out
    assert "8 pairs of 8 prompts" in out
    for line in (
        r"accuracy +0\.438 \[0\.\d+, 0\.\d+\] +chance is 0\.5",
        r"κ with the labels +-?0\.\d+ \[.*\]  raw agreement \d+ %",
        r"position bias +0\.286 ",
        r"non-option probability mass +0\.200 ",
        r"cost per pair +2\.0 calls +0\.\d\d s",
        r"identical answers +1 +ties, counted as p = 0\.5",
        r"temperature +\d+\.\d+ +fitted on \d pairs, not applied",
        r"! ",
    ):
        assert re.search(line, out), line
    judge_json = json.loads((tmp_path / "out/judge.json").read_text(encoding="utf-8"))
    assert judge_json["calibration"]["temperature"] > 0 and "temperature" not in judge_json  # it is not applied
    assert cai(monkeypatch, "judge-eval", *given, "--limit", 2, "--replace") == 0
    assert "2 pairs of 2 prompts" in capsys.readouterr().out


def test_a_panel_is_named_by_repeating_the_model(
    given: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = another(tmp_path, "other")
    assert cai(monkeypatch, "judge", *given, "--judge", other, "--set", "principles=1") == 0
    assert "judging, 2 of 2: 14 calls" in capsys.readouterr().out
    rows = (tmp_path / "out/preferences.jsonl").read_text(encoding="utf-8")
    assert cai(monkeypatch, "judge", *given, "--set", "principles=1", "--set", f"model=[{given[3]}, {other}]") == 0
    assert (tmp_path / "out/preferences.jsonl").read_text(encoding="utf-8") == rows


@pytest.mark.parametrize("command", ["judge", "judge-eval"])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--data", "none.jsonl"], "none.jsonl: no such file"),
        (["--judge", "/nowhere"], "model '/nowhere': no such folder"),
        (["--constitution", "none.yaml"], "--constitution none.yaml: no such file, nor a run in"),
        (["--constitution", "plian.yaml"], "did you mean 'constitutions/plain.yaml'?"),
        (["--constitution", "harmles"], "did you mean 'harmless'?"),
        (["--set", "revise.rounds=1"], "--set revise.rounds: unknown key 'revise'; known keys: "),
        (["--judge", "smollm2-135"], "model 'smollm2-135': no such folder; did you mean 'smollm2-135m'?"),
        (["--judge", "gpt2"], "or a full Hub id, org/model (gpt2 is openai-community/gpt2)"),
        (["--templates", "none"], "--templates: 'none' not found"),
        (["--set", "judge.principels=3"], "--set principels: unknown key 'principels'; did you mean 'prin"),
        (["--set", "principles=0"], "--set principles: "),
        (["--set", "samples=3"], "--set samples: `cai judge` samples no responses"),
        (["--set", "principles"], "--set principles: expected key=value"),
        (["--seed", "x"], "--seed': expected a valid integer"),
    ],
)
def test_a_mistake_is_an_error_message_with_status_2(
    given: list[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    options: list[str],
    expected: str,
) -> None:
    assert cai(monkeypatch, command, *given, *options) == 2
    err = capsys.readouterr().err
    assert expected in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_a_run_stands_for_its_constitution_and_a_limit_for_the_first_rows(
    given: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "runs/mine"
    run.mkdir(parents=True)
    (run / "manifest.json").write_text("{}", encoding="utf-8")
    shutil.copy(ROOT / "constitutions/plain.yaml", run / "constitution.yaml")
    for name in ("mine", run):
        assert cai(monkeypatch, "judge", *given, "--constitution", name, "--limit", 3) == 0
        assert "3 pairs labelled" in capsys.readouterr().out
    rows = read_rows(tmp_path / "out/preferences.jsonl", Preference)
    assert {v.principle_id for row in rows for v in row.verdicts} == {"good-for-people"}


def test_a_file_of_equal_answers_alone_is_a_warning(
    given: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path, *[pair(i, 1, 1) for i in range(3)])
    assert cai(monkeypatch, "judge-eval", *given) == 0
    assert "! the judge gave no verdict: the two answers of every pair are identical" in capsys.readouterr().out


def test_a_row_of_no_known_form_is_named_with_its_line(
    given: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path, pair(0), {"prompt": "Why?", "answers": []})
    assert cai(monkeypatch, "judge", *given) == 2
    assert (
        "data.jsonl:2: unknown format of a preference (found prompt, answers); the closest:" in capsys.readouterr().err
    )


@pytest.mark.parametrize("answered", [0, 7])
@pytest.mark.parametrize("command", ["judge", "judge-eval"])
def test_an_interrupt_prints_the_command_that_resumes_once_there_are_answers(
    given: list[object],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    answered: int,
) -> None:
    def interrupted(job: object, output: object, cache: object, reporter: Reporter, *_: object) -> None:
        with reporter.task("labels", 56, "calls") as task:
            task.update(answered, 56)
            raise KeyboardInterrupt

    monkeypatch.setattr("cai.cli.judge.label_file", interrupted)
    monkeypatch.setattr("cai.cli.judge_eval.evaluate_judge", interrupted)
    assert cai(monkeypatch, command, *given) == 130
    out = capsys.readouterr().out
    assert "Interrupted." in out
    assert ("All answers so far are cached" in out) is (f"cai {command} --data {given[1]}" in out) is bool(answered)


class Tags(HTMLParser):
    """The tags of a page, which must close in order."""

    VOID = {"meta", "br", "hr", "img", "input", "link"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_stands_alone_and_texts_cannot_become_markup(
    given: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = '"><script>alert(1)</script><img src=http://x onerror=y>{{ 7*7 }}'
    rows = [
        {"id": evil, "prompt": f"{evil} {i}?", "chosen": f"{evil} is 0", "rejected": f"{evil} is {2 + i}"}
        for i in range(6)
    ]
    written(tmp_path, *rows, {**rows[0], "chosen": ""})
    assert cai(monkeypatch, "judge-eval", *given, "--calibrate") == 0
    page = (tmp_path / "out/judge.html").read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert {"svg", "circle", "polyline", "table", "details"} <= tags.seen
    assert not {"script", "img", "link", "iframe"} & tags.seen
    assert "&lt;script&gt;alert(1)" in page
    assert "{{ 7*7 }}" in page
    assert "color-scheme: light dark" in page
    assert 'name="viewport"' in page
    assert "default-src 'none'" in page
    assert "href" not in page


def test_dots_of_the_diagram_stand_where_their_metrics_say(
    given: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, *[pair(i, 1, 0) for i in range(3)], pair(3, 0, 1))
    assert cai(monkeypatch, "judge-eval", *given) == 0
    page = (tmp_path / "out/judge.html").read_text(encoding="utf-8")
    [(x, y)] = re.findall(r'<circle class="a" cx="([\d.]+)" cy="([\d.]+)"', page)
    assert (float(x), float(y)) == (pytest.approx(200 * (0.7310586 - 0.5), abs=0.01), 25.0)


def test_nothing_heavy_is_imported_before_a_model_is_needed() -> None:
    code = (
        "import sys; import cai.cli.judge\n"
        "print(sorted({'torch', 'vllm', 'transformers', 'trl', 'datasets', 'scipy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.splitlines()[-1] == "[]"
