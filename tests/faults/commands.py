"""Command lines that break programs: every command with arguments and options of any kind, in a small workspace."""

import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import typer
from hypothesis import strategies as st

from cai.cli.main import app, main
from cai.config.errors import CaiError
from cai.inference import scheduler
from cai.inference.engine import ScriptedEngine
from cai.report import serve
from cai.training import stage
from tests.faults.inputs import CONSTITUTION, PAIR, ROWS, RUN, SWEEP, TEXTS, workspace

LEFT_OUT = {("models", "prepare")}  # takes half a minute, or downloads
ENDLESS = {"--watch", "--help"}
HOSTILE = (
    "\x1b[31m\x9b2J [bold]x[/] \u202e\u200b"  # colours, clears the screen, is markup of rich's, turns and hides text
)
NAMES = (
    "run.yaml", "sweep.yaml", "c.yaml", "p.jsonl", "pairs.jsonl", "rows.csv", "broken.yaml", "broken.jsonl", "empty", "folder", "model", "nowhere",
    "run", "constitution", "sweep", "harmless", "plain", "test", "test/iteration-1", "runs", "runs/test", "sft", "reward", "ppo", "dpo",
    "trl-preference", "kto", "hh-rlhf", "ultrafeedback", "alpaca-eval", "annotated-pairs", "huggingface", "preferences", "prompts", "few-shot",
    "completions", "a", "out.jsonl", "out/x.html", "0", "1", "-1", "3.5", "1e999", "nan", "9" * 30, "seed=1", "train=[]", "revise.rounds=0",
    "judge.samples=2", "http://127.0.0.1:9#m", "http://[#m", "all", "none", "red_team",
)  # fmt: skip
value = st.one_of(st.sampled_from(NAMES), st.sampled_from(NAMES), st.sampled_from(TEXTS), st.text(max_size=6)).filter(
    lambda text: (
        "\0" not in text and not text.startswith("/")
    )  # no argument of a process has the one; the other is no sandbox
)


def leaves() -> dict[tuple[str, ...], Any]:
    """Every command by its words."""
    root: Any = typer.main.get_command(app)
    found: dict[tuple[str, ...], Any] = {}

    def walk(group: Any, words: tuple[str, ...]) -> None:
        for name in group.list_commands(None):
            command = group.get_command(None, name)
            if hasattr(command, "list_commands"):
                walk(command, (*words, name))
            elif (*words, name) not in LEFT_OUT:
                found[*words, name] = command

    walk(root, ())
    return found


COMMANDS = leaves()


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """A command with most of its arguments and some of its options."""
    words = draw(st.sampled_from(sorted(COMMANDS)))
    line: list[str] = [*words]
    for parameter in COMMANDS[words].params:
        if parameter.param_type_name == "argument":
            line += draw(st.lists(value, min_size=1, max_size=2 if parameter.nargs == -1 else 1))
        elif (parameter.opts[0] not in ENDLESS and draw(st.integers(0, 3)) == 0) or parameter.required:
            line += [parameter.opts[0]] if parameter.is_flag else [parameter.opts[0], draw(value)]
    return line + (draw(st.lists(value, max_size=1)) if draw(st.integers(0, 9)) == 0 else [])


def furnish(folder: Path) -> None:
    """The files that command lines name."""
    if (folder / "empty").exists():
        return
    workspace(folder)
    constitution = json.dumps(CONSTITUTION | {"name": HOSTILE, "description": HOSTILE}).replace(
        '"notes": "n"', f'"notes": {json.dumps(HOSTILE)}'
    )
    (folder / "c.yaml").write_text(constitution.replace('"t"', json.dumps(HOSTILE)), encoding="utf-8")
    rows = [{"id": f"{HOSTILE}{i}", "prompt": f"{HOSTILE} {i}?", "tags": [HOSTILE]} for i in range(4)]
    (folder / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "run.yaml").write_text(json.dumps({**RUN, "name": "test", "train": []}), encoding="utf-8")
    (folder / "sweep.yaml").write_text(json.dumps(SWEEP), encoding="utf-8")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [PAIR, *ROWS[0]]), encoding="utf-8")
    (folder / "rows.csv").write_text("prompt,chosen,rejected\nq\x1b[2J,a\u202e,b\n", encoding="utf-8")
    (folder / "broken.yaml").write_bytes(json.dumps(CONSTITUTION).encode()[:-3])
    (folder / "broken.jsonl").write_bytes(b'{"prompt": "q"}\n{"prompt": \xff\n')
    (folder / "empty").write_bytes(b"")
    (folder / "folder").mkdir()
    command(["run", "run.yaml"], folder)


@contextlib.contextmanager
def no_models() -> Iterator[None]:
    """Scripted engines in place of models, no training, and a server that stops at once."""

    def refuse(*_: Any) -> None:
        raise CaiError("no training here")

    def open_scripted(model: Any, fingerprint: str, *_: Any) -> ScriptedEngine:
        return ScriptedEngine(fingerprint, lambda request: f"{request.seed} {HOSTILE}")

    with (
        mock.patch.object(scheduler, "VllmEngine", open_scripted),
        mock.patch.object(scheduler, "ServerEngine", open_scripted),
        mock.patch.object(stage, "follow", refuse),
        mock.patch.object(serve.Server, "serve_forever", lambda self: None),
    ):
        yield


def command(line: list[str], folder: Path) -> str:
    """Run a command line in this process; it must end with status 0, 1 or 2, no traceback and no control characters.

    Returns: what it printed, on both streams.
    """
    printed, before = io.StringIO(), Path.cwd()
    os.chdir(folder)
    status: object = None
    try:
        with (
            mock.patch.object(sys, "argv", ["cai", *line]),
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(printed),
            no_models(),
        ):
            main()
    except SystemExit as stopped:
        status = stopped.code
    finally:
        os.chdir(before)
    text = printed.getvalue()
    assert status in (0, 1, 2, None), (status, text[-500:])
    assert "error: unexpected " not in text and "Traceback" not in text, text[-500:]
    odd = [c for c in text if not c.isprintable() and c not in "\n\t"]
    assert not odd, (odd[:3], text[-500:])
    return text


def read(line: list[str], folder: Path) -> None:
    """A target of an attack."""
    furnish(folder)
    command(line, folder)
