"""`cai show`: some of a run's examples, by prompt, principle and flag."""

import json
import re
from pathlib import Path

import pytest

from cai.data.jsonl import write_rows
from cai.data.records import Skipped
from cai.runs.folder import RunFolder
from tests.cli.test_cli import cai
from tests.report.folders import write_run

NINE = ["p00", "p01", "p02", "p03", "p04", "p05"]  # a third of nine is held out


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    run = write_run(tmp_path / "test", prompts=9)
    rows = run.revisions()
    rows[4] = rows[4].model_copy(update={"principle_id": "safety"})
    write_rows(run.revisions_jsonl, rows)
    text = run.constitution_yaml.read_text(encoding="utf-8")
    one = text[text.index("[{") + 1 : text.rindex("}]") + 1]
    other = one.replace("good-for-people", "safety")
    run.constitution_yaml.write_text(text.replace(one, f"{one}, {other}"), encoding="utf-8")
    return tmp_path


def shown(printed: str) -> list[str]:
    return re.findall(r"^(p\d\d) ─", printed, re.MULTILINE)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), NINE),
        (("--prompt", "p03"), ["p03"]),
        (("--principle", "safety"), ["p04"]),
        (("--principle", "good-for-people"), [i for i in NINE if i != "p04"]),
        (("--flag", "copied_critique"), ["p01", "p03", "p05"]),
        (("--flag", "truncated"), ["p00", "p03"]),
        (("--flag", "copied_critique", "--flag", "truncated", "--prompt", "p03"), ["p03"]),
        (("--stage", "preferences", "--principle", "good-for-people", "--prompt", "p02"), ["p02"]),
        (("--stage", "evaluation", "--flag", "truncated"), ["p06", "p07", "p08"]),
        (("--stage", "skipped", "--prompt", "p01"), ["p01"]),
    ],
)
def test_examples_are_chosen_by_prompt_principle_and_flag(
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    expected: list[str],
) -> None:
    assert cai(monkeypatch, "show", "test", "-n", 99, "--runs", runs, *options) == 0
    printed = capsys.readouterr().out
    assert shown(printed) == expected
    if len(options) == 2:
        assert printed.rstrip().endswith(f" of test that match {' '.join(options)}")


@pytest.mark.parametrize(
    ("stage", "prompt", "expected"),
    [
        ("revisions", "p01", "label\n    none: revision unchanged\nskipped\n    judged pairs: samples identical"),
        ("revisions", "p02", "label\n    none: revise.label is off"),
        ("revisions", "p07", "none of 6 revisions of test match --prompt p07\n  held out from training: its rows are"),
        (
            "preferences",
            "p01",
            "none of 5 preferences of test match --prompt p01\n  revision pairs: revision unchanged",
        ),
        ("preferences", "p00", "none of 5 preferences of test match --prompt p00\n  feedback: too long"),
    ],
)
def test_a_prompt_without_a_pair_says_why(
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stage: str,
    prompt: str,
    expected: str,
) -> None:
    run = RunFolder(runs / "test")
    write_rows(run.preferences_jsonl, [row for row in run.preferences() if row.prompt_id != prompt])
    rows = [
        ("p00", "feedback", "too long"),
        ("p01", "revision pairs", "revision unchanged"),
        ("p01", "judged pairs", "samples identical"),
    ]
    write_rows(run.skipped_jsonl, [Skipped(prompt_id=id, stage=at, reason=why) for id, at, why in rows])
    manifest = run.manifest()
    manifest["config"]["revise"]["label"] = "off"
    run.manifest_json.write_text(json.dumps(manifest), encoding="utf-8")
    assert cai(monkeypatch, "show", "test", "--stage", stage, "--prompt", prompt, "--runs", runs) == 0
    assert expected in "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines())


def test_a_round_has_to_match_both_principle_and_flag(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--principle", "safety", "--flag", "copied_critique")
    assert cai(monkeypatch, "show", "test", "--runs", runs, *options) == 0
    assert capsys.readouterr().out == "none of 6 revisions of test match --principle safety --flag copied_critique\n"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--prompt", "p0"), "--prompt p0: not a prompt of test; did you mean 'p00'"),
        (("--prompt", "x"), "--prompt x: not a prompt of test; expected one of p00, p01, p02"),
        (("--principle", "safty"), "constitution.yaml; did you mean 'safety'?"),
        (("--flag", "copied"), "--flag copied: not a flag of revisions; did you mean 'copied_critique'?"),
        (("--stage", "preferences", "--flag", "empty"), "not a flag of preferences; expected one of truncated"),
        (("--stage", "skipped", "--flag", "empty"), "--flag applies to revisions, preferences and evaluation"),
        (("--stage", "skipped", "--principle", "x"), "--principle applies to revisions, preferences and evaluation"),
    ],
)
def test_what_no_row_can_have_is_an_error_that_names_the_nearest(
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    expected: str,
) -> None:
    assert cai(monkeypatch, "show", "test", "--runs", runs, *options) == 2
    assert expected in capsys.readouterr().err
