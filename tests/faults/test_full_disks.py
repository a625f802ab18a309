"""A full or read-only disk is one line that names a file, and the same command completes once there is room."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from cai.config.errors import CaiError, error_text
from cai.data.jsonl import write_rows
from cai.data.records import Demonstration
from cai.inference.reporter import Reporter
from cai.runs.evaluate import Options
from cai.runs.pipeline import execute
from cai.runs.plan import make_plan
from cai.training import stage
from cai.training.stage import STAGES, Report, StageSpec, run_stage
from cai.training.worker import train
from tests.conftest import prompt, scripted, write_workspace
from tests.runs.test_evaluate import evaluate, make_run, model

ROWS = ("prompts.jsonl", "revisions.jsonl", "preferences.jsonl", "skipped.jsonl")
ROOM = "64m"


def mount(*words: str) -> bool:
    return subprocess.run(["mount", *words], capture_output=True).returncode == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An empty file system in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.getuid() != 0 or not mount("-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(folder)):
        pytest.skip("a small disk can be mounted only by root, where the system allows it")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def run(run_file: Path, runs: Path) -> dict[str, str]:
    """The rows of a run. Raises: AssertionError for an error that is not one line about a file."""
    plan = make_plan(run_file, [], None, runs)
    execute(plan, Reporter(Console(quiet=True)), open_engine=scripted())
    return {name: (runs / "test" / name).read_text() for name in ROWS}


def error_of(run_file: Path, runs: Path) -> str | None:
    """The line that the command prints; None where it completes."""
    try:
        run(run_file, runs)
    except CaiError as error:
        return str(error)
    except OSError as error:
        return error_text(error)
    return None


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [4, 8, 40, 60, 100, 160, 180, 200, 240, 300])
def test_a_run_on_a_full_disk_names_a_file_and_completes_once_there_is_room(
    tmp_path: Path, model_folder: Path, small_disk: Path, kilobytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cai.inference.cache.LEASE_SECONDS", 0.5)  # those that found no room to end are waited for
    run_file = write_workspace(tmp_path, model_folder)
    undisturbed = run(run_file, tmp_path / "runs")
    assert mount("-o", f"remount,size={kilobytes}k", str(small_disk))
    message = error_of(run_file, small_disk / "runs")
    if message is not None:
        assert "\n" not in message
        assert re.match(rf"{re.escape(str(small_disk))}/\S+: .*the disk is full; make room and run the same", message)
    assert mount("-o", f"remount,size={ROOM}", str(small_disk))
    assert run(run_file, small_disk / "runs") == undisturbed
    left = [path.name for path in small_disk.rglob("*") if path.name.endswith(".part")]
    assert left == []


def test_a_read_only_folder_is_named(tmp_path: Path, model_folder: Path, small_disk: Path) -> None:
    run_file = write_workspace(tmp_path, model_folder)
    run(run_file, small_disk / "runs")
    assert mount("-o", "remount,ro", str(small_disk))
    message = error_of(run_file, small_disk / "runs")
    assert message == f"{small_disk}/runs/test: cannot be written: read-only file system"


def used(disk: Path) -> int:
    """Kilobytes that are taken."""
    found = os.statvfs(disk)
    return (found.f_blocks - found.f_bfree) * found.f_bsize // 1024


@pytest.mark.slow
@pytest.mark.parametrize("more", [8, 60, 200])
def test_an_evaluation_on_a_full_disk_names_a_file_and_completes_once_there_is_room(
    tmp_path: Path, small_disk: Path, more: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cai.inference.cache.LEASE_SECONDS", 0.5)
    runs = small_disk / "runs"
    run = make_run(runs, "good", base=model(tmp_path / "base", "base"))
    undisturbed = evaluate(runs, Options("good"), tmp_path / "eval")
    (runs / "cache.sqlite").unlink()
    assert mount("-o", f"remount,size={used(small_disk) + more}k", str(small_disk))
    with pytest.raises((CaiError, OSError)) as caught:
        evaluate(runs, Options("good"))
    message = error_text(caught.value)
    assert re.match(rf"{re.escape(str(small_disk))}/\S+: .*the disk is full; make room and run the same", message)
    assert "\n" not in message
    assert mount("-o", f"remount,size={ROOM}", str(small_disk))
    assert evaluate(runs, Options("good")).comparisons == undisturbed.comparisons
    assert not list(run.path.rglob("*.part"))


@pytest.mark.slow
def test_a_training_on_a_full_disk_says_so_and_goes_on_once_there_is_room(
    tmp_path: Path, tiny_model: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [Demonstration(prompt_id=str(i), messages=prompt().messages, completion="Boil it.") for i in range(4)]
    write_rows(tmp_path / "rows.jsonl", rows)
    values = {"stage": "sft", "lora_r": None, "save_steps": 1, "per_device_train_batch_size": 1}
    settings = STAGES["sft"].model_validate(values | {"gradient_accumulation_steps": 1})

    def trained(folder: Path) -> bytes:
        run_stage(StageSpec(settings, tmp_path / "rows.jsonl", tiny_model, folder), lambda event: None)
        return (folder / "model/model.safetensors").read_bytes()

    folder = small_disk / "sft"
    assert mount("-o", "remount,size=650k", str(small_disk))
    with pytest.raises(CaiError) as caught:
        trained(folder)
    assert str(caught.value) == (
        f"{folder}: the disk is full; make room and run it again, it goes on from its last whole checkpoint"
    )
    assert mount("-o", f"remount,size={ROOM}", str(small_disk))
    monkeypatch.setattr(stage, "follow", train_in_this_process)  # a second worker would show the same
    assert trained(folder) == trained(tmp_path / "undisturbed")


def train_in_this_process(command: list[str], log: Path, report: Report) -> None:
    train(StageSpec.read(Path(command[-1])), report)
