"""What `cai sweep` prints."""

import json
import sys
from contextlib import closing
from pathlib import Path

import pytest

from cai.cli.main import main
from cai.inference.cache import Cache, Tally, Work
from cai.inference.engine import EngineConfig
from cai.inference.scheduler import engine_fingerprint
from cai.runs.pipeline import execute
from cai.runs.sweep import SWEEP_METRICS
from tests.conftest import scripted
from tests.runs.test_sweep import write_sweep


@pytest.fixture
def cai(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """Run `cai sweep` with an engine that needs no model; its status, and what it printed."""
    monkeypatch.setattr(execute, "__defaults__", (False, scripted()))

    def run(*arguments: object) -> tuple[int, str, str]:
        arguments = ("sweep", *arguments, "--runs", tmp_path / "runs")
        monkeypatch.setattr(sys, "argv", ["cai", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        result = capsys.readouterr()
        return int(stopped.value.code or 0), result.out, result.err

    return run


def test_runs_stand_side_by_side_until_a_setting_makes_them_others(cai, tmp_path: Path, model_folder: Path) -> None:
    path = write_sweep(tmp_path, model_folder, grid={"revise.rounds": [1, 2]})
    status, out, _ = cai(path)
    assert status == 0
    headings = out[: out.index("\n  rounds-1")].split()
    assert all(word in headings for metric in SWEEP_METRICS for word in metric.name.split())
    assert [line.split()[0] for line in out.splitlines() if line.startswith("  rounds-")] == ["rounds-1", "rounds-2"]
    runs = tmp_path / "runs"
    assert "–: the run has no such part, such as pairs labelled by a judge" in out
    assert out.splitlines()[-1] == f"  cai compare trial/rounds-1 trial/rounds-2 --runs {runs}"
    status, out, err = cai(path, "--set", "seed=7")
    assert (status, out) == (2, "")
    assert err.count("holds a finished run with other settings") == 1
    assert cai(path, "--set", "seed=7", "--replace")[0] == 0


def test_a_sweep_over_principles_goes_on_with_their_effects(cai, tmp_path: Path, model_folder: Path) -> None:
    path = write_sweep(tmp_path, model_folder, principles="one-at-a-time", set={"constitution": "brief"})
    status, out, _ = cai(path)
    runs = tmp_path / "runs"
    assert status == 0
    assert out.splitlines()[-2:] == [
        f"  cai attribute trial --runs {runs}",
        f"  cai compare trial/all trial/only-short trial/only-plain-words trial/only-answer-first --runs {runs}",
    ]


def test_a_damaged_folder_fails_its_own_run_alone(cai, tmp_path: Path, model_folder: Path) -> None:
    path = write_sweep(tmp_path, model_folder, grid={"revise.rounds": [1, 2, 3]})
    assert cai(path)[0] == 0
    runs = tmp_path / "runs/trial"
    (runs / "rounds-1/manifest.json").write_text("{", encoding="utf-8")
    (runs / "rounds-2/summary.json").write_text("{", encoding="utf-8")
    (runs / "rounds-3/summary.json").unlink()
    status, out, _ = cai(path, "--retry-failed")
    assert status == 1
    assert "rounds-1 failed: " in out and "manifest.json: not valid JSON" in out
    assert "cai compare" not in out  # one run alone is there
    assert "rounds-2 failed: " in out and "summary.json: not valid JSON" in out
    assert (runs / "rounds-3/summary.json").exists()
    index = json.loads((runs / "sweep.json").read_text(encoding="utf-8"))
    assert [run["state"] for run in index["runs"]] == ["failed", "failed", "finished"]
    assert [line.split()[:2] for line in out.splitlines() if line.startswith("  rounds-2")] == [["rounds-2", "damaged"]]
    assert cai(path, "--set", "seed=7")[2].count("2 of the sweep's 3 runs would be overwritten") == 1


def test_a_dry_run_lists_the_stages_to_train(cai, tmp_path: Path, model_folder: Path) -> None:
    path = write_sweep(tmp_path, model_folder, grid={"train": [[], [{"stage": "sft"}]]})
    status, out, _ = cai(path, "--dry-run")
    assert status == 0
    assert "not included: 1 training stage, 3 updates at most; time: not measured yet" in out
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_by_one_measurement_says_so(cai, tmp_path: Path, model_folder: Path) -> None:
    path = write_sweep(tmp_path, model_folder, grid={"revise.rounds": [1]})
    assert "by one measurement" not in cai(path, "--dry-run")[1]
    with closing(Cache(tmp_path / "runs/cache.sqlite")) as cache:
        work = Work("feedback", {"answer": Tally(1, 0, 1000, 1000, 1)}, 20.0, False)
        cache.add_work(engine_fingerprint(model_folder, EngineConfig()), work)
    assert "\n  time: some of it by one measurement of a model here\n" in cai(path, "--dry-run")[1]
