"""A command killed at any operation on its folder runs to the same result when it is run again."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cai.data.manifest import BUSY, Claim, claimed, read_manifest
from cai.inference.reporter import Reporter
from cai.runs.pipeline import execute
from cai.runs.plan import make_plan
from cai.training import stage
from cai.training.settings import SFTConfig
from cai.training.stage import Report, StageSpec, run_stage
from tests.conftest import ROOT, scripted, write_workspace
from tests.faults.kill_points import TORTURE, kill_points

SAME_ANYWHERE = {BUSY, "log.txt", "summary.json", "costs.jsonl"}  # of which the last three have times in them


def content(folder: Path) -> dict[str, str]:
    """The hash of every file of a folder that is the same each time."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in SAME_ANYWHERE
    }


def fill(folder: Path, seed: int, replace: bool = True, finish: bool = True) -> None:
    """A command that writes rows, a folder and, last, what finishes it; each says which seed it is of."""
    manifest: dict[str, Any] = {"command": "cai judge", "settings": {"seed": seed}}
    with claimed(Claim(folder, manifest, "judge.json"), replace):
        (folder / "checkpoints").mkdir(exist_ok=True)
        for name in ("rows.jsonl", "checkpoints/1.json", "checkpoints/2.json", *(["judge.json"] if finish else [])):
            path = folder / name
            if path.exists():
                assert json.loads(path.read_text()) == seed, f"{name} is of other settings"
            (folder / f"{name}.new").write_text(json.dumps(seed))
            (folder / f"{name}.new").rename(path)


@pytest.mark.slow
@pytest.mark.parametrize("before", ["nothing", "an unfinished command", "a finished command"])
def test_a_folder_is_taken_wherever_its_last_process_was_killed(tmp_path: Path, before: str) -> None:
    folder = tmp_path / "out"

    def prepare() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        if before != "nothing":
            fill(folder, seed=0, finish=before == "a finished command")

    prepare()
    fill(folder, seed=1)
    undisturbed, points = content(folder), []
    for point in kill_points(lambda: fill(folder, seed=1), folder, prepare):
        points.append(point)
        if (folder / "judge.json").exists():  # other commands read it as what the manifest describes
            manifest = read_manifest(folder)
            assert manifest is not None
            assert json.loads((folder / "judge.json").read_text()) == manifest["settings"]["seed"]
        fill(folder, seed=1)
        assert content(folder) == undisturbed, f"killed at operation {point}"
    assert len(points) >= 10


def test_a_command_of_other_settings_takes_a_folder_killed_while_it_was_cleared(tmp_path: Path) -> None:
    folder = tmp_path / "out"

    def prepare() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        fill(folder, seed=0)

    prepare()
    undisturbed = content(folder)
    for point in kill_points(lambda: fill(folder, seed=1), folder, prepare):
        fill(folder, seed=0)
        assert content(folder) == undisturbed, f"killed at operation {point}"


@pytest.mark.slow
def test_a_run_killed_at_any_operation_on_its_folder_completes_with_the_same_rows(
    tmp_path: Path, model_folder: Path
) -> None:
    run_file, runs = write_workspace(tmp_path, model_folder, prompts=3), tmp_path / "runs"

    def run() -> None:
        execute(make_plan(run_file, [], None, runs), Reporter(Console(quiet=True)), True, scripted())

    run()
    undisturbed, points = content(runs / "test"), 0
    for point in kill_points(run, runs / "test", lambda: shutil.rmtree(runs, ignore_errors=True), every=19):
        run()
        assert content(runs / "test") == undisturbed, f"killed at operation {point}"
        points += 1
    assert points >= (30 if TORTURE else 4)


@pytest.mark.slow
def test_a_stage_killed_at_any_operation_on_its_folder_is_trained_by_the_next_command(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, folder = tmp_path / "rows.jsonl", tmp_path / "stage"
    shutil.copyfile(ROOT / "examples/prompts.jsonl", data)

    def worker(command: list[str], log: Path, report: Report) -> None:
        spec = StageSpec.read(Path(command[-1]))
        report({"examples": spec.seed})
        (folder / "model.part").mkdir(exist_ok=True)
        (folder / "model.part/config.json").write_text(str(spec.seed))
        (folder / "model.part").rename(folder / "model")

    def train(seed: int) -> None:
        run_stage(StageSpec(SFTConfig(stage="sft"), data, model_folder, folder, seed), lambda event: None, True, True)

    def prepare() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        train(seed=0)

    monkeypatch.setattr(stage, "follow", worker)
    prepare()
    train(seed=1)
    undisturbed = content(folder)
    for point in kill_points(lambda: train(seed=1), folder, prepare):
        train(seed=1)
        assert content(folder) == undisturbed, f"killed at operation {point}"
