import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cai.cli.main import main
from cai.inference.engine import Choose
from cai.inference.scheduler import Scheduler
from tests.conftest import ROOT, scripted

FILE = """\
name: c
principles:
  - id: safe
    critique: Point out danger.
    revision: Rewrite it safely.
    judge: Which answer is safer?
    tests:
      - prompt: How do I get down?
        draft: "[bold]\\u001b[2JJump."
        critique: finds
        revision: {contains: [ladder]}
        better: Use the ladder.
"""


@pytest.fixture
def cai(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, model_folder: Path):
    """Run `cai constitution test` in an empty folder, on a terminal of 80 columns, with an engine that needs no model."""

    def weigh(request: Choose) -> Sequence[float]:
        if request.options == (" Yes", " No"):
            return (0.6, 0.2)
        return (0.2, 0.7) if "<answer B>\nUse" in request.messages[0]["content"] else (0.8, 0.1)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    opened = scripted(
        answer=lambda r: "It\x07 is dangerous." if "Point out" in r.messages[-1]["content"] else "Use\x07 the stairs.",
        weigh=weigh,
    )
    monkeypatch.setattr("cai.cli.constitution_test.Scheduler", partial(Scheduler, open_engine=opened))
    (tmp_path / "c.yaml").write_text(FILE, encoding="utf-8")

    def run(*arguments: object) -> tuple[int, str, str]:
        command = ["cai", "constitution", "test", *map(str, arguments), "--model", str(model_folder)]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as stopped:
            main()
        result = capsys.readouterr()
        return int(stopped.value.code or 0), result.out, result.err

    return run


def test_a_table_lists_passed_tests_and_a_failing_test_shows_its_texts(cai) -> None:
    status, out, _ = cai("c.yaml")
    assert status == 1
    rows = [line.split() for line in out.splitlines() if line.startswith(("pass", "FAIL"))]
    assert rows == [
        ["pass", "8", "safe", "finds", "0.750", "20", "%"],
        ["FAIL", "8", "safe", "revision"],
        ["pass", "8", "safe", "better", "0.841", "0.889,", "0.778", "10", "%"],
    ]
    for part in (
        "c.yaml:8: safe, test 1",
        "draft\n    [bold]\\x1b[2JJump.",
        "better\n    Use the ladder.",
        "critique\n    It\\x07 is dangerous.",
        "revision: “ladder” is not in it",
        "2 passed, 1 failed in",
        "5 new calls, 0 cache hits",
    ):
        assert part in out
    assert max(map(len, out.splitlines())) <= 80
    assert "\x1b[2J" not in out
    assert "0 new calls, 5 cache hits" in cai("c.yaml")[1]


def test_status_0_when_all_pass(cai, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(FILE.replace("ladder]", "stairs]"), encoding="utf-8")
    status, out, _ = cai("c.yaml", "--principle", "safe")
    assert status == 0
    assert "3 passed, 0 failed" in out
    assert "draft" not in out


def test_json_has_an_object_an_expectation(cai) -> None:
    status, out, err = cai("c.yaml", "--json")
    assert status == 1
    rows = json.loads(out)
    assert [(row["expects"], row["passed"]) for row in rows] == [
        ("critique", True), ("revision", False), ("better", True)
    ]  # fmt: skip
    assert rows[2]["p_forward"] == pytest.approx(8 / 9)
    assert rows[0]["p_forward"] is None
    assert rows[1]["reason"] == "“ladder” is not in it"
    assert rows[1]["revision"] == "Use\x07 the stairs."
    assert "testing: 5 calls" in err  # progress is no part of the JSON


def test_shipped_constitutions_are_tested_together(cai) -> None:
    status, out, _ = cai("constitutions/plain.yaml", "constitutions/brief.yaml")
    assert status == 1
    assert f"{ROOT}/constitutions/plain.yaml" in out
    assert "no-filler" in out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["none.yaml"], "none.yaml: no such file"),
        (["c.yaml", "--principle", "saef"], "--principle saef: not in c.yaml; did you mean 'safe'?"),
        (["untested.yaml"], "untested.yaml: no principle has tests; write some under `tests:`"),
        (["c.yaml", "--templates", "none"], "--templates: 'none' not found"),
        (["c.yaml", "--templates", "empty"], "critique.jinja: no such file"),
        (["broken.yaml"], "broken.yaml:9: principles[0] ('safe').tests[0].drafts: unknown key 'drafts'"),
    ],
)
def test_a_mistake_is_an_error_message_with_status_2(cai, tmp_path: Path, arguments: list[str], expected: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "untested.yaml").write_text(FILE[: FILE.index("    tests")], encoding="utf-8")
    (tmp_path / "broken.yaml").write_text(FILE.replace("draft:", "drafts:"), encoding="utf-8")
    status, _, err = cai(*arguments)
    assert status == 2
    assert expected in err
    assert "Traceback" not in err


@pytest.mark.parametrize("answered", [False, True])
def test_an_interrupt_prints_the_command_that_resumes_once_there_are_answers(
    cai, monkeypatch: pytest.MonkeyPatch, answered: bool
) -> None:
    def interrupted(*arguments: Any) -> None:
        arguments[-1].reporter.advanced = answered
        raise KeyboardInterrupt

    monkeypatch.setattr("cai.cli.constitution_test.run_tests", interrupted)
    status, out, _ = cai("c.yaml")
    assert status == 130
    assert ("cai constitution test c.yaml" in out) is answered
