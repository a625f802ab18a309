import json
from pathlib import Path
from typing import Any

import pytest

from cai.config.errors import CaiError
from cai.runs.plan import make_plan, manifest
from cai.runs.run_file import load_run_file
from cai.training import tracking
from cai.training.settings import SFTConfig
from cai.training.stage import StageSpec
from cai.training.tracking import Trackers
from tests.conftest import train_here, write_workspace
from tests.training.test_sft import revisions


class Recorder:
    """A tracker that keeps what it logs and its settings."""

    def __init__(self, **settings: Any) -> None:
        self.settings, self.logged, self.state = settings, [], "made"
        made.append(self)

    def start(self) -> None:
        self.state = "started"

    def log(self, values: dict[str, float], step: int) -> None:
        assert self.state == "started"
        self.logged.append((step, values))

    def finish(self) -> None:
        self.state = "finished"


made: list[Recorder] = []


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    """Recorders in place of accelerate's trackers, and every package there."""
    import accelerate.tracking

    made.clear()
    for name in ("tensorboard", "wandb", "trackio"):
        monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, name, Recorder)
    monkeypatch.setattr(tracking, "find_spec", lambda name: name)
    return made


def test_nothing_is_reported_by_default(recorded: list[Recorder], tmp_path: Path) -> None:
    Trackers([], tmp_path / "metrics.jsonl", 0).log({"step": 1, "loss": 1.0})
    assert recorded == []
    assert SFTConfig(stage="sft").report_to == []


@pytest.mark.slow
def test_trackers_get_the_numbers_of_the_metrics_file(
    recorded: list[Recorder], tiny_model: Path, tmp_path: Path
) -> None:
    settings = SFTConfig(stage="sft", max_length=100, report_to=["wandb", "tensorboard", "wandb"])
    folder = tmp_path / "run" / "train" / "1-sft"
    train_here(StageSpec(settings, revisions(tmp_path / "r.jsonl"), tiny_model, folder))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    wandb, tensorboard = recorded
    assert wandb.logged == tensorboard.logged == [(line.pop("step"), line) for line in lines]
    assert wandb.settings == {"run_name": "cai", "name": "run/1-sft"}
    assert tensorboard.settings == {"run_name": "tensorboard", "logging_dir": folder, "purge_step": 1}
    assert wandb.state == tensorboard.state == "finished"


def test_members_of_an_ensemble_are_tracked_apart(recorded: list[Recorder], tmp_path: Path) -> None:
    Trackers(["trackio", "tensorboard"], tmp_path / "reward" / "metrics-2.jsonl", 5)
    assert recorded[0].settings["name"] == "reward-2"
    assert (recorded[1].settings["run_name"], recorded[1].settings["purge_step"]) == ("tensorboard-2", 6)


def test_further_trainings_of_a_run_are_tracked_by_their_number(recorded: list[Recorder], tmp_path: Path) -> None:
    Trackers(["trackio"], tmp_path / "run/seeds/2/train/1-dpo/metrics.jsonl", 0)
    assert recorded[0].settings["name"] == "run/1-dpo#2"


def test_where_metrics_go_changes_neither_the_run_nor_its_stage(
    recorded: list[Recorder], model_folder: Path, tmp_path: Path
) -> None:
    run_file = write_workspace(tmp_path, model_folder, extra="train: [{stage: sft}]\n")
    plans = [make_plan(run_file, extra, None, tmp_path) for extra in ([], ["train.0.report_to=[wandb]"])]
    assert manifest(plans[0]) == manifest(plans[1])
    data = revisions(tmp_path / "r.jsonl")
    first, second = (
        StageSpec(plan.train[0], data, model_folder, tmp_path / "stage").claim().manifest for plan in plans
    )
    assert first == second


def test_a_tracker_that_is_not_installed_is_reported_before_any_call(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    run_file = write_workspace(tmp_path, model_folder, extra="train: [{stage: sft, report_to: [wandb]}]\n")
    with pytest.raises(
        CaiError, match=r"run\.yaml:5: train\[0\]\.report_to: .*wandb is not installed: pip install wandb"
    ):
        load_run_file(run_file)
    run_file.write_text(run_file.read_text().replace("[wandb]", "wandb"), encoding="utf-8")
    with pytest.raises(CaiError, match=r"expected a list of 'tensorboard', 'wandb', 'trackio', found 'wandb'"):
        load_run_file(run_file)


def test_tensorboard_reads_what_was_reported(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, loss in ((0, 1.0), (2, 5.0)):  # resumed from update 2: what came after it is replaced
        found = Trackers(["tensorboard"], tmp_path / "metrics.jsonl", start)
        for step in range(start + 1, 5):
            found.log({"step": step, "loss": loss, "note": "no number"})
        found.finish()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["loss"]
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.0), (2, 1.0), (3, 5.0), (4, 5.0)]
