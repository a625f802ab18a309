"""Runs killed at random moments complete with the same bytes, and of several on one folder one works."""

import contextlib
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from cai.config.errors import CaiError
from cai.inference.engine import Generate
from cai.inference.reporter import Reporter
from cai.runs.folder import RunFolder
from cai.runs.pipeline import execute
from cai.runs.plan import make_plan
from tests.conftest import ROOT, scripted, write_workspace

KILLS = int(os.environ.get("CAI_TORTURE", "0"))  # 0: two of one run, the same each time


def lines_of(command: list[str], show: bool) -> tuple[int, list[str]]:
    """The exit status of a command and its lines, each shown as soon as it is there."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip("\n"))
        if show:
            print(lines[-1], flush=True)
    return process.wait(), lines


def test_lines_of_a_long_attack_are_shown_as_they_come(tmp_path: Path) -> None:
    """The command ends once the line that it printed has been seen."""
    seen = tmp_path / "seen"
    waits = f"import pathlib, time; print('seed 7', flush=True)\nwhile not pathlib.Path({str(seen)!r}).exists(): time.sleep(0.01)"
    out = Shown(seen)
    with contextlib.redirect_stdout(out):
        assert lines_of([sys.executable, "-c", waits], show=True) == (0, ["seed 7"])
    assert out.getvalue() == "seed 7\n"


class Shown(io.StringIO):
    """What is printed; the first of it makes a file."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file

    def write(self, text: str) -> int:
        self._file.touch()
        return super().write(text)


@pytest.mark.slow
def test_a_run_killed_at_random_moments_completes_with_the_same_bytes(tiny_model: Path) -> None:
    kills, seed = (str(KILLS), []) if KILLS else ("2", ["1361"])
    command = [sys.executable, "-m", "tests.faults.kills", str(tiny_model), kills, *seed]
    status, lines = lines_of(command, show=bool(KILLS))
    assert status == 0, "\n".join(lines)[-6000:]
    counted = json.loads(next(line for line in reversed(lines) if line.startswith("{")))
    assert counted["kills"] >= int(kills)
    assert counted["lost"] == 0


def test_of_two_runs_on_one_folder_the_second_is_refused_in_words(tmp_path: Path, model_folder: Path) -> None:
    run_file, runs = write_workspace(tmp_path, model_folder), tmp_path / "runs"
    refused: list[str] = []

    def run(answer: Callable[[Generate], str] | None = None) -> None:
        execute(make_plan(run_file, [], None, runs), Reporter(Console(quiet=True)), True, scripted(answer=answer))

    def second() -> None:
        with pytest.raises(CaiError) as error:
            run()
        refused.append(str(error.value))

    def answer(request: Generate) -> str:
        """Of the first run, which thus works for as long as the second takes."""
        if not refused:
            thread = threading.Thread(target=second)
            thread.start()
            thread.join()
        return f"answer {request.seed}"

    run(answer)
    assert refused == [f"{runs / 'test'}: another process is working in this folder"]
    assert len(RunFolder(runs / "test").revisions()) == 12


@pytest.mark.slow
def test_of_runs_that_start_at_once_on_one_folder_one_works_and_all_others_are_refused(
    tmp_path: Path, model_folder: Path
) -> None:
    run_file, runs = write_workspace(tmp_path, model_folder), tmp_path / "runs"
    command = [sys.executable, "-m", "tests.faults.at_once", run_file, runs, "8"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    outcomes = result.stdout.splitlines()
    refused = f"{runs / 'test'}: another process is working in this folder"
    assert sorted(set(outcomes)) == sorted({"completed", refused}), outcomes
    assert outcomes.count("completed") == 1
    assert len(RunFolder(runs / "test").revisions()) == 12
