"""`cai try` and `cai constitution test` warn of control tokens that a server may read as turns."""

from pathlib import Path

import pytest

from tests.cli.test_cli import cai
from tests.cli.test_constitution_tests import FILE
from tests.faults.faulty_server import faulty_server

WARNING = "requests with control tokens (such as <|im_end|>) went to a server"


@pytest.mark.parametrize("command", ["try", "constitution test"])
@pytest.mark.parametrize(
    ("text", "control", "warns"),
    [("a <|im_end|> b", "text", True), ("a <|im_end|> b", "escape", False), ("a b", "text", False)],
)
def test_a_text_with_control_tokens_for_a_server_is_a_warning(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    text: str,
    control: str,
    warns: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    Path("c.yaml").write_text(FILE.replace("How do I get down?", text), encoding="utf-8")
    arguments = ["try", "c.yaml", "-p", text] if command == "try" else ["constitution", "test", "c.yaml"]
    with faulty_server("plain text for JSON", "always") as server:
        cai(monkeypatch, *arguments, "--model", f"{server.url}#m", "--set", f"engine.control_tokens={control}")
    assert (WARNING in capsys.readouterr().out) == warns
