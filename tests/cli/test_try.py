import asyncio
import json
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cai.cli import try_
from cai.cli.main import main
from cai.constitution.principles import Principle
from cai.data.records import Prompt
from cai.inference.engine import Completion, Generate
from cai.workbench.trial import News, Step, Written, try_out
from tests.conftest import scripted

FILE = """\
name: c
principles:
  - {id: safe, critique: Find danger., revision: Make it safe., judge: Which is safer}
  - {id: kind, critique: Find malice., revision: Make it kind., judge: Which is kinder}
"""


@pytest.fixture
def cai(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, model_folder: Path):
    """Run `cai try` in an empty folder, on a terminal of 80 columns, with an engine that needs no model."""

    def answer(request: Generate) -> str:
        asked = request.messages[-1]["content"].split("\n")[0]
        if asked.startswith("Make"):
            return f"The draft, {asked[8:-1]}."
        return "No\x1b[2J [bold]words." if "Find" in asked else "The draft."

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(try_out, "__defaults__", (scripted(answer=answer),))
    (tmp_path / "c.yaml").write_text(FILE, encoding="utf-8")

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cai", "try", *map(str, arguments), "--model", str(model_folder)])
        with pytest.raises(SystemExit) as stopped:
            main()
        result = capsys.readouterr()
        return int(stopped.value.code or 0), result.out, result.err

    return run


def test_the_whole_transcript_is_printed(cai, model_folder: Path) -> None:
    status, out, _ = cai("c.yaml", "-p", "How do I climb?")
    assert status == 0
    assert [line.rstrip() for line in out.splitlines()][:19] == [
        f"loading {model_folder} …",
        "",
        "prompt 1 of 1: How do I climb? ─────────────────────────────────────────────────",
        "user",
        "    How do I climb?",
        "draft",
        "    The draft.",
        "",
        "safe",
        "critique",
        "    No\\x1b[2J [bold]words.",
        "revision",
        "    The draft, safe.",
        "",
        "kind",
        "critique",
        "    No\\x1b[2J [bold]words.",
        "revision",
        "    The draft, kind.",
    ]
    assert "5 texts in" in out
    assert "5 new calls" in out
    assert "\x1b" not in out
    _, again, _ = cai("c.yaml", "-p", "How do I climb?")
    assert "0 new calls" in again
    assert "loading" not in again


def test_a_revision_that_was_truncated_says_so_once(capsys: pytest.CaptureFixture[str]) -> None:
    prompt = Prompt(id="p", messages=[{"role": "user", "content": "How?"}])
    safe = Principle(id="safe", critique="Find danger.", revision="Make it safe.", judge="Which is safer?")
    written = Written(Completion("Climb", "length", 5, 1), "A draft.", ("truncated", "copied_critique"))
    page = try_.Page(Console(width=80), [prompt], "model")
    page.show(News(Step(prompt, safe, 1, "revision"), written, None))
    assert "revision  (truncated, copied_critique)\n" in capsys.readouterr().out


def test_prompts_come_from_options_and_files_and_each_stands_once(cai, tmp_path: Path) -> None:
    rows = [{"id": f"p{i}", "prompt": f"Question {i}?"} for i in range(3)]
    rows.insert(1, rows[0])
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    given = ["-p", "Mine?", "-p", "Mine?", "--prompts", "p.jsonl", "-n", 2]
    _, out, err = cai("c.yaml", *given, "--principle", "kind", "--set", "revise.critique=false")
    headings = [line.split(" ─")[0] for line in out.splitlines() if line.startswith("prompt ")]
    assert headings == [
        f"prompt {n} of 3: {text}" for n, text in ((1, "Mine?"), (2, "Question 0?"), (3, "Question 1?"))
    ]
    assert "6 texts in" in out
    assert "safe" not in out
    assert "critique" not in out
    assert "skipped: 1 × " in err


def test_watching_shows_what_an_edit_changes_word_by_word(cai, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    watched: list[Path] = []
    passes, printed = 0, try_.line

    def line(console: Any, text: Any) -> None:
        nonlocal passes
        passes += "Ctrl-C stops" in str(text)
        printed(console, text)

    async def passed(count: int) -> None:
        while passes < count:
            await asyncio.sleep(0.001)

    async def changes(paths: Sequence[Path]) -> AsyncIterator[None]:
        watched.extend(paths)
        edits = [("Make it kind.", "Make it warm."), ("name:", "nam:"), ("nam:", "name:")]
        yield
        for count, (old, new) in enumerate(edits, start=1):
            await passed(count)
            text = (tmp_path / "c.yaml").read_text(encoding="utf-8")
            (tmp_path / "c.yaml").write_text(text.replace(old, new), encoding="utf-8")
            yield
        await passed(len(edits) + 1)
        raise KeyboardInterrupt

    monkeypatch.setattr("cai.cli.try_.line", line)
    monkeypatch.setattr("cai.cli.try_.changes", changes)
    status, out, _ = cai("c.yaml", "-p", "How do I climb?", "--watch")
    assert status == 130
    assert [path.name for path in watched] == ["c.yaml", "default"]
    first, second, third, fourth, *rest = out.split("Ctrl-C stops")
    assert "5 texts in" in first
    assert "Watching c.yaml and " in first
    assert "revision, changed\n    The draft, [-kind.-]{+warm.+}" in second
    assert "1 text in" in second
    for gone in ("safe", "critique", "user", "Interrupted"):
        assert gone not in second
    assert "error: c.yaml:1: nam: unknown key 'nam'; did you mean 'name'?" in third
    assert "no text changed in" in fourth
    assert "0 new calls" in fourth
    assert rest == ["\n"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["c.yaml"], "no prompt; expected -p TEXT or --prompts FILE"),
        (["c.yaml", "-p", " "], "-p: the prompt is empty"),
        (["none.yaml", "-p", "x"], "none.yaml: no such file"),
        (["bad.yaml", "-p", "x", "--watch"], "bad.yaml:1: nam: unknown key 'nam'"),
        (["c.yaml", "-p", "x", "--principle", "sfae"], "--principle sfae: not in c.yaml; did you mean 'safe'?"),
        (["c.yaml", "-p", "x", "--templates", "none"], "--templates: 'none' not found"),
        (
            ["c.yaml", "-p", "x", "--set", "revise.temprature=1"],
            "unknown key 'temprature'; did you mean 'temperature'?",
        ),
        (["c.yaml", "--prompts", "none.jsonl"], "--prompts: 'none.jsonl' not found"),
        (["c.yaml", "-p", "x", "-n", 0], "invalid value for '--limit'"),
    ],
)
def test_a_mistake_is_an_error_message_with_status_2(
    cai, tmp_path: Path, arguments: list[object], expected: str
) -> None:
    (tmp_path / "bad.yaml").write_text(FILE.replace("name:", "nam:"), encoding="utf-8")
    status, _, err = cai(*arguments)
    assert status == 2
    assert expected in err
    assert "Traceback" not in err


@pytest.mark.parametrize("answers", [0, 1])
def test_an_interrupt_prints_the_command_that_resumes_once_there_are_answers(
    cai, monkeypatch: pytest.MonkeyPatch, answers: int
) -> None:
    answered: list[Generate] = []

    def answer(request: Generate) -> str:
        answered.append(request)
        if len(answered) > answers:
            raise KeyboardInterrupt
        return "The draft."

    monkeypatch.setattr(try_out, "__defaults__", (scripted(answer=answer),))
    status, out, _ = cai("c.yaml", "-p", "x")
    assert status == 130
    assert "Interrupted." in out
    assert ("cai try c.yaml -p x" in out) is bool(answers)
