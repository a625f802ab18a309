"""README and docs name commands, options, settings and files that exist."""

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from cai.cli.main import RENAMED_OPTIONS, app
from cai.cli.serve import PORT
from cai.config.yaml_files import RENAMED
from cai.constitution.principles import load_constitution

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
STAGE_FIELDS = ("stage", "data")  # the name of a stage, and what follows from it


def documented_commands(page: Path) -> Iterator[list[str]]:
    """The words of every `cai` command in a page's code blocks, without `cai` itself."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in re.findall(r"^ {0,4}(?:\$ )?(?:\.venv/bin/)?cai (.+)$", text, re.MULTILINE):
        if "…" not in line:
            yield shlex.split(line, comments=True)


def resolve(words: list[str]) -> tuple[Any, list[str]]:
    """The command that the words call, and the words after its name."""
    command: Any = get_command(app)
    while words and hasattr(command, "get_command") and not words[0].startswith("-"):
        command, words = command.get_command(None, words[0]), words[1:]
        assert command is not None
    return command, words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_documented_commands_and_options_exist(page: Path) -> None:
    for words in documented_commands(page):
        command, rest = resolve(words)
        known = {"--help", *(option for parameter in command.params for option in parameter.opts)}
        options = {word.split("=")[0] for word in rest if re.match("-[-a-z]", word)}
        assert options <= known, f"{page.name}: cai {' '.join(words)}"


def test_every_setting_of_a_run_is_documented() -> None:
    page = (ROOT / "docs/run-file.md").read_text(encoding="utf-8")
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", page, flags=re.DOTALL))
    words = {word for code in inline for word in re.findall(r"\w+", code)}
    schema = json.loads((ROOT / "schemas/run.json").read_text(encoding="utf-8"))
    fields = {name for part in (schema, *schema["$defs"].values()) for name in part.get("properties", {})}
    assert fields - words <= set(STAGE_FIELDS)


def test_every_renamed_key_and_option_is_in_the_changelog() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    for old, new in RENAMED.items():
        assert f"`{old}`" in changelog and f"`{new}`" in changelog, old
    for command, options in RENAMED_OPTIONS.items():
        for old, new in options.items():
            assert f"| `{command}` | `{old}` | `{new}` |" in changelog, (command, old)


def test_cai_serve_does_not_take_the_port_of_a_documented_model_server() -> None:
    texts = [page.read_text(encoding="utf-8") for page in [*PAGES, *ROOT.glob("examples/*.yaml")]]
    ports = {int(port) for text in texts for port in re.findall(r"(?:--port |://[\w.]+:)(\d+)(?=/v1| |\n)", text)}
    command, _ = resolve(["serve"])
    assert 8000 in ports and {p.name: p.default for p in command.params}["port"] not in ports
    assert f"cai serve                                 # all runs at http://127.0.0.1:{PORT}/" in "".join(texts)


def test_the_readme_stays_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 900


def test_the_demo_rewords_one_principle_of_its_constitution(tmp_path: Path) -> None:
    script = (ROOT / "examples/demo.sh").read_text(encoding="utf-8")
    (edit,) = re.findall(r"^sed .*?> runs/demo-shorter.yaml$", script, re.MULTILINE | re.DOTALL)
    edited = tmp_path / "edited.yaml"
    subprocess.run(["bash", "-c", edit.replace("runs/demo-shorter.yaml", str(edited))], cwd=ROOT, check=True)
    before, after = (load_constitution(path).principles for path in (ROOT / "constitutions/brief.yaml", edited))
    [(old, new)] = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
    assert old.model_copy(update={"revision": new.revision}) == new
    assert new.revision.endswith("one short sentence of at most eight words. Keep only the point.")
