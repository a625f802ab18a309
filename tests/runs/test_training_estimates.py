"""The forecast of training: updates × seconds an update, from earlier trainings of the stage and model."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cai.cli.console import show
from cai.cli.run import forecast_parts
from cai.inference.reporter import Reporter
from cai.runs.dry_run import dry_run
from cai.runs.pipeline import execute
from cai.runs.plan import make_plan
from cai.runs.training_estimates import SPREAD, TrainingTime, sum_of_ranges, training_memory
from cai.training import distributed, stage
from cai.training.memory import estimate
from cai.training.model_shape import shape_in
from cai.training.stage import TIMING, StageSpec, run_stage
from tests.conftest import scripted, write_workspace
from tests.runs.test_evaluate import model
from tests.training.test_settings import dpo, preferences

TRAIN = """train:
  - {stage: reward, members: 2, holdout: 0.5, per_device_train_batch_size: 1, gradient_accumulation_steps: 1}
  - {stage: ppo, updates: 7, rollouts: 16}
  - {stage: dpo, num_train_epochs: 3, per_device_train_batch_size: 2, gradient_accumulation_steps: 2}
"""


@pytest.fixture
def trained(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run file, and a run of it whose PPO stage took two seconds an update of 16 rollouts, and 5 besides."""

    def train(spec: StageSpec[Any], *others: Any) -> Path:
        for file in spec.model.iterdir():
            (spec.folder / "model").mkdir(parents=True, exist_ok=True)
            (spec.folder / "model" / file.name).write_text('{"trained": true}', encoding="utf-8")
        (spec.folder / "model/reward.json").write_text("{}", encoding="utf-8")
        spec.write(spec.folder / "stage.json")
        if spec.settings.stage == "ppo":
            timing = {"updates": 7, "update_seconds": 2.0, "other_seconds": 5.0}
            (spec.folder / TIMING).write_text(json.dumps(timing), encoding="utf-8")
        return spec.folder / "model"

    monkeypatch.setattr("cai.runs.pipeline.run_stage", train)
    run_file = write_workspace(tmp_path, model_folder, extra=TRAIN)
    execute(make_plan(run_file, [], "first", tmp_path / "runs"), Reporter(Console(quiet=True)), False, scripted())
    return run_file


def times(run_file: Path, *overrides: str) -> dict[str, TrainingTime]:
    found = dry_run(make_plan(run_file, list(overrides), "other", run_file.parent / "runs"))
    return {one.stage: one for one in found.training}


def test_training_is_forecast_from_what_the_same_stage_and_model_took(trained: Path) -> None:
    found = times(trained)
    assert found["2-ppo"] == TrainingTime("2-ppo", 7, 2.0, 5.0, 1)
    assert found["2-ppo"].time_range() == pytest.approx((19 / SPREAD, 19 * SPREAD))
    assert times(trained, "train.1.updates=3", "train.1.rollouts=32")["2-ppo"] == TrainingTime("2-ppo", 3, 4.0, 5.0, 1)


def test_a_stage_or_a_model_that_was_not_trained_yet_is_not_measured(trained: Path) -> None:
    found = times(trained)
    assert [found[name].time_range() for name in ("1-reward", "3-dpo")] == [None, None]
    assert found["1-reward"].updates == 2 * 3  # members × half of six prompts
    assert found["3-dpo"].updates == 9  # twelve pairs in fours, three times
    other = model(trained.parent / "other-model", "other")
    assert times(trained, f"model={other}")["2-ppo"].time_range() is None


def test_the_dry_run_prints_the_time_of_training_or_that_it_is_not_measured(trained: Path) -> None:
    console = Console(record=True, width=80)
    for part in forecast_parts(dry_run(make_plan(trained, [], "other", trained.parent / "runs")), None):
        show(console, part)
    lines = [" ".join(line.split()) for line in console.export_text().splitlines()]
    assert "2-ppo 7 2.0 s 12.7 s to 28.5 s, by one training" in lines and "3-dpo 9 – not measured yet" in lines


@pytest.mark.parametrize("updates", [1, 3])
def test_a_stage_measures_its_updates_where_there_are_several(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, updates: int
) -> None:
    now = 100.0

    def train(command: list[str], log: Path, report: Callable[[dict[str, Any]], None]) -> None:
        nonlocal now
        now += 20.0  # loading
        for step in range(1, updates + 1):
            now += 4.0
            report({"step": step, "of": updates, "note": ""})
        now += 3.0  # saving
        (tmp_path / "dpo/model").mkdir()

    monkeypatch.setattr(stage, "follow", train)
    monkeypatch.setattr(stage.time, "monotonic", lambda: now)
    data = preferences(tmp_path / "p.jsonl")
    run_stage(StageSpec(dpo(), data, model_folder, tmp_path / "dpo"), lambda event: None)
    written = tmp_path / "dpo" / TIMING
    if updates == 1:
        assert not written.exists()
    else:
        assert json.loads(written.read_text()) == {"updates": 3, "update_seconds": 4.0, "other_seconds": 23.0}


def test_times_of_several_trainings_add_up_unless_one_is_unknown() -> None:
    assert sum_of_ranges([(1.0, 2.0), (10.0, 40.0)]) == (11.0, 42.0)
    assert sum_of_ranges([(1.0, 2.0), None]) is None
    assert sum_of_ranges([]) == (0, 0)


def test_the_dry_run_computes_the_memory_of_stages_whose_model_it_can_read(
    trained: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cai.training.checks.visible_gpus", list)
    plan = make_plan(trained, [f"model={tiny_model}"], "other", trained.parent / "runs")
    forecast = dry_run(plan)
    assert list(forecast.memory) == ["1-reward", "2-ppo", "3-dpo"]
    ppo = estimate(plan.train[1], shape_in("tiny", tiny_model))  # whose reward model has two members
    assert forecast.memory["2-ppo"] == ppo.peak + next(p.at["loss"] for p in ppo.parts if p.name == "reward model")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr("cai.training.checks.visible_gpus", distributed.visible_gpus)
    launcher = "launcher=torchrun --nproc_per_node 2"
    plan = make_plan(trained, [f"model={tiny_model}", launcher], "other", trained.parent / "runs")
    two = estimate(plan.train[2], shape_in("tiny", tiny_model), 2)
    assert training_memory(plan, ["3-dpo"]) == {"3-dpo": two.peak}
    console = Console(record=True, width=80)
    for part in forecast_parts(forecast, None):
        show(console, part)
    assert re.search(r"3-dpo +9 +\d+\.\d\d [MG]iB", console.export_text())
    assert dry_run(make_plan(trained, [], "other", trained.parent / "runs")).memory == {}  # its config.json is empty
