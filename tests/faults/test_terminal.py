"""Names, paths and texts that hold control characters are shown as escapes, on the terminal and in the log."""

import io
from pathlib import Path

import pytest
from rich.text import Text

from cai.config.characters import Terminal, visible, visible_json
from cai.inference.reporter import Reporter
from tests.faults.commands import HOSTILE, command, furnish


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    furnish(folder)
    command(["run", "run.yaml", "--name", "other", "--set", "revise.rounds=0"], folder)
    command(["sweep", "sweep.yaml"], folder)
    return folder


@pytest.mark.parametrize(
    "line",
    [
        "show test",
        "show test --stage preferences",
        "runs",
        "run run.yaml --dry-run",
        "compare test other",
        "compare test other --json",
        "report test",
        "constitution show c.yaml",
        "constitution lint c.yaml --json",
        "constitution diff c.yaml harmless",
        "constitution diff c.yaml harmless --json",
        "constitution export c.yaml --format huggingface",
        "constitution test c.yaml --model model",
        "try c.yaml p.jsonl --model model",
        "judge --data pairs.jsonl --judge model --constitution c.yaml --out judged",
        "judge-eval --data rows.csv --judge model --constitution c.yaml --out judge",
        "attribute s",
        "import rows.csv --out imported.jsonl",
        "export test exported.jsonl",
        "eval model --prompts p.jsonl --constitution c.yaml",
        "run \x1b[2J\u202e.yaml",
    ],
)
def test_no_command_prints_a_control_character(folder: Path, line: str) -> None:
    command(line.split(" "), folder)  # which checks what it prints


def test_the_log_holds_no_control_character_and_one_entry_a_line(folder: Path) -> None:
    log = (folder / "runs/test/log.txt").read_text()
    assert visible(HOSTILE) in log
    assert all(c.isprintable() or c == "\n" for c in log)
    lines = io.StringIO()
    Reporter(Terminal(file=lines), folder / "log.txt").say("one\n2026-01-01T00:00:00 forged \x1b[2J")
    assert (folder / "log.txt").read_text().splitlines()[1] == r"  2026-01-01T00:00:00 forged \x1b[2J"
    assert lines.getvalue() == "one\n2026-01-01T00:00:00 forged \\x1b[2J\n"


def test_a_terminal_escapes_texts_and_keeps_its_own_colours() -> None:
    printed = io.StringIO()
    Terminal(file=printed, force_terminal=True, color_system="standard").print(Text("a\u202eb\x1b[2J", style="red"))
    assert printed.getvalue() == "\x1b[31ma\\u202eb\\x1b[2J\x1b[0m\n"


def test_json_is_escaped_without_a_change_of_its_value() -> None:
    assert visible_json('["\u202e\x7f\U000e0001é"]') == '["\\u202e\\u007f\\udb40\\udc01é"]'
