"""Runs that train several policies from the same feedback: `seeds` of a run file."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cai.cli.run import print_summary
from cai.compare.compare import compare_runs
from cai.config.errors import CaiError
from cai.data.manifest import MANIFEST_JSON, read_manifest, write_manifest
from cai.evaluation.policy_report import read_report
from cai.inference.engine import Choose, EngineConfig, ScriptedEngine
from cai.inference.models import Model, folder_fingerprint
from cai.inference.reporter import Reporter
from cai.report.run import read_run, run_report
from cai.runs import pipeline
from cai.runs.dry_run import dry_run
from cai.runs.evaluate import Options, plan_evaluation
from cai.runs.evaluation_folder import adds_to, evaluation_claim
from cai.runs.find import find_policy
from cai.runs.folder import RunFolder
from cai.runs.pipeline import execute
from cai.runs.plan import make_plan
from cai.runs.publish import write_dataset
from cai.runs.shard import Shard, shard_plan
from cai.runs.sweep import is_finished
from cai.runs.verify import verify_run
from cai.training import stage
from cai.training.stage import StageSpec
from tests.conftest import train_here, write_workspace

DPO = "train: [{stage: dpo, lora_r: 2, num_train_epochs: 2, learning_rate: 1.0e-2, max_length: 400}]\n"
TRAIN = "train: [{stage: reward, holdout: 0.25}, {stage: dpo}]\n"


def weigh(request: Choose) -> Sequence[float]:
    """A verdict that any word of the request may turn."""
    digest = hashlib.sha256(json.dumps(request.messages).encode()).digest()
    return [(1 + digest[0]) / 600, (1 + digest[1]) / 600]


def open_engine(model: Model, fingerprint: str, settings: EngineConfig) -> ScriptedEngine:
    """Each model has answers of its own, and a number of words of its own."""
    words = 3 + int(fingerprint[:2], 16) % 7
    return ScriptedEngine(
        fingerprint,
        lambda r: " ".join([fingerprint[:4], str(r.seed), *map(str, range(words + len(str(r.seed)) % 3))]),
        weigh,
    )


class Trainer:
    """In place of workers: "model.safetensors" that data and seed decide; `stop` is the stage at which it is killed."""

    def __init__(self, stop: str = "") -> None:
        self.trained: list[str] = []
        self.stop = stop

    def __call__(self, spec: StageSpec[Any], report: Any, replace: bool = True, keep_data: bool = False) -> Path:
        claim, model = spec.claim(), spec.folder / "model"
        report({"too_long": ["p1"], "examples": 1})  # also of a finished stage
        if claim.is_finished() and not claim.changes():
            return model
        name = f"{spec.folder.parent.parent.name}/{spec.folder.name}"
        if name == self.stop:
            raise KeyboardInterrupt
        self.trained.append(name)
        spec.folder.mkdir(parents=True, exist_ok=True)
        write_manifest(spec.folder, claim.manifest)
        spec.write(spec.folder / "stage.json")
        shutil.copytree(spec.model, model, dirs_exist_ok=True)
        (model / "model.safetensors").write_text(f"{claim.manifest['data']} {spec.seed} {spec.settings.stage}")
        (spec.folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": spec.seed % 97 / 97}) + "\n")
        return model


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    made = Trainer()
    monkeypatch.setattr(pipeline, "run_stage", made)
    return made


def run_to_end(run_file: Path, *overrides: str, name: str | None = None, replace: bool = False) -> RunFolder:
    plan = make_plan(run_file, list(overrides), name, run_file.parent / "runs")
    [folder] = execute(plan, Reporter(Console(quiet=True)), replace, open_engine)
    return folder


def summary_of(folder: RunFolder) -> dict[str, Any]:
    summary = folder.summary()
    assert summary is not None
    return summary


def manifests(folder: RunFolder) -> list[dict[str, Any]]:
    return [json.loads((t.train / "2-dpo" / MANIFEST_JSON).read_text()) for t in folder.trainings()]


def test_each_training_has_its_own_seed_and_policy_from_the_same_feedback(
    tmp_path: Path, model_folder: Path, trainer: Trainer
) -> None:
    run_file = write_workspace(tmp_path, model_folder, extra=TRAIN)
    one = run_to_end(run_file, name="one")
    trainer.trained.clear()
    three = run_to_end(run_file, "seeds=3", name="three")
    assert trainer.trained == [f"{home}/{stage}" for home in ("three", "2", "3") for stage in ("1-reward", "2-dpo")]
    for name in ("revisions.jsonl", "preferences.jsonl", "skipped.jsonl"):
        assert (one.path / name).read_bytes() == (three.path / name).read_bytes()
    first, *others = manifests(three)
    assert first == manifests(one)[0] and one.manifest() == three.manifest()
    assert (one.train / "2-dpo/model/model.safetensors").read_text() == (
        three.train / "2-dpo/model/model.safetensors"
    ).read_text()
    assert len({m["seed"] for m in (first, *others)}) == 3 and first["seed"] == 0
    assert {m["data"] for m in others} == {first["data"]}
    policies = [training.policy() for training in three.trainings()]
    assert [str(policy.relative_to(three.path)) for policy in policies if policy] == [
        "train/2-dpo/model",
        "seeds/2/train/2-dpo/model",
        "seeds/3/train/2-dpo/model",
    ]
    assert len({folder_fingerprint(policy) for policy in policies if policy}) == 3
    reports = [read_report(folder / "evaluation.json") for folder in three.evaluations()]
    assert [report.policies[1].name for report in reports] == ["three", "three#2", "three#3"]
    assert len({report.policies[0].model for report in reports}) == 1


def test_one_seed_is_a_run_as_ever(tmp_path: Path, model_folder: Path, trainer: Trainer) -> None:
    folder = run_to_end(write_workspace(tmp_path, model_folder, extra=TRAIN), "seeds=1")
    assert "seeds" not in folder.manifest()["config"]
    assert "trainings" not in summary_of(folder)
    assert not (folder.path / "seeds").exists()


def test_a_run_killed_in_its_second_training_resumes_there(
    tmp_path: Path, model_folder: Path, trainer: Trainer
) -> None:
    run_file = write_workspace(tmp_path, model_folder, extra=TRAIN + "seeds: 3\n")
    trainer.stop = "2/2-dpo"
    with pytest.raises(KeyboardInterrupt):
        run_to_end(run_file)
    folder = RunFolder(tmp_path / "runs/test")
    assert (folder.eval / "evaluation.json").exists() and folder.summary() is None
    trainer.stop, trainer.trained = "", []
    run_to_end(run_file)
    assert trainer.trained == ["2/2-dpo", "3/1-reward", "3/2-dpo"]
    resumed, undisturbed = summary_of(folder), summary_of(run_to_end(run_file, name="undisturbed"))
    for summary in (resumed, undisturbed):
        del summary["files"]["run.yaml"]  # which has the name
        summary |= {"seconds": 0, "calls": 0, "work": 0, "in_all": 0}
    assert resumed == undisturbed


def test_more_seeds_add_trainings_and_fewer_need_replace(tmp_path: Path, model_folder: Path, trainer: Trainer) -> None:
    run_file = write_workspace(tmp_path, model_folder, extra=TRAIN)
    run_to_end(run_file)
    plan = make_plan(run_file, ["seeds=2"], None, tmp_path / "runs")
    assert not is_finished(plan)
    trainer.trained.clear()
    folder = run_to_end(run_file, "seeds=2")
    assert trainer.trained == ["2/1-reward", "2/2-dpo"] and is_finished(plan)
    with pytest.raises(CaiError, match=r"holds 2 trainings, and `seeds` is 1; set seeds to 2 .*--name NEW.*--replace"):
        run_to_end(run_file)
    assert len(folder.evaluations()) == 2
    (folder.path / "seeds/2").rename(folder.path / "seeds/3")
    assert not is_finished(plan)
    with pytest.raises(CaiError, match="set seeds to 3 or more"):
        run_to_end(run_file, "seeds=2")
    run_to_end(run_file, replace=True)
    assert folder.evaluations() == [folder.eval] and "trainings" not in summary_of(folder)


def test_other_settings_do_not_overwrite_what_a_further_training_trained(
    tmp_path: Path, model_folder: Path, trainer: Trainer
) -> None:
    run_file = write_workspace(tmp_path, model_folder, extra=TRAIN + "seeds: 2\n")
    folder = run_to_end(run_file)
    folder.summary_json.unlink()
    shutil.rmtree(folder.train)
    with pytest.raises(CaiError, match="holds unfinished training"):
        run_to_end(run_file, "prompts.limit=5")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (TRAIN + "iterations: 2\nseeds: 3\n", "seeds: 3, and iterations: 2: each iteration starts from one policy"),
        ("seeds: 2\n", "seeds: 2, and `train` trains no policy"),
        ("seeds: 2\ntrain: [{stage: reward}]\n", "seeds: 2, and `train` trains no policy"),
        (TRAIN + "seeds: 0\n", "seeds"),
    ],
)
def test_seeds_that_cannot_be_trained_are_refused(tmp_path: Path, model_folder: Path, extra: str, message: str) -> None:
    with pytest.raises(CaiError, match=message):
        make_plan(write_workspace(tmp_path, model_folder, extra=extra), [], None, tmp_path / "runs")


def test_a_shard_of_a_run_with_seeds_trains_nothing(tmp_path: Path, model_folder: Path) -> None:
    run_file = write_workspace(tmp_path, model_folder, extra=TRAIN + "seeds: 2\n")
    plan = shard_plan(make_plan(run_file, [], None, tmp_path / "runs"), Shard(1, 2))
    make_plan(run_file, plan.overrides, None, tmp_path / "runs")


def test_a_forecast_counts_each_training_and_its_evaluation(
    tmp_path: Path, model_folder: Path, trainer: Trainer
) -> None:
    run_file = write_workspace(tmp_path, model_folder, extra=TRAIN)

    def answers(seeds: int) -> tuple[list[str], dict[str, int]]:
        forecast = dry_run(make_plan(run_file, [f"seeds={seeds}"], None, tmp_path / "runs"))
        calls = {line.stage: line.cache_misses for line in forecast.lines if line.step == "answer"}
        return forecast.untrained, {stage: n for stage, n in calls.items() if stage.startswith(("test:", "test#"))}

    assert answers(1) == (["1-reward", "2-dpo"], {"test: answers": 2})
    untrained, calls = answers(3)
    assert untrained == [f"{stage}{of}" for of in ("", "#2", "#3") for stage in ("1-reward", "2-dpo")]
    assert calls == {"test: answers": 2, "test#2: answers": 2, "test#3: answers": 2}
    run_to_end(run_file, "seeds=2")
    assert answers(2) == ([], {"test: answers": 0, "test#2: answers": 0})
    untrained, calls = answers(3)
    assert untrained == ["1-reward#3", "2-dpo#3"] and calls["test#3: answers"] == 2


def test_surfaces_show_every_policy_and_the_spread(tmp_path: Path, model_folder: Path, trainer: Trainer) -> None:
    folder = run_to_end(write_workspace(tmp_path, model_folder, 16, TRAIN + "seeds: 3\n"))
    summary = summary_of(folder)
    trainings = summary["trainings"]
    assert [(t["number"], t["policy"]) for t in trainings][1:] == [
        (2, "seeds/2/train/2-dpo/model"),
        (3, "seeds/3/train/2-dpo/model"),
    ]
    means = [t["metrics"]["after_better"]["mean"] for t in trainings]
    assert len(set(means)) == 3
    assert summary["metrics"]["after_better"]["mean"] == pytest.approx(sum(means) / 3)
    assert list(summary["training"]) == ["1-reward", "2-dpo", "1-reward#2", "2-dpo#2", "1-reward#3", "2-dpo#3"]
    assert summary["seconds"].keys() >= {"evaluation", "evaluation#3", "2-dpo#2"}
    assert [row.stage for row in folder.skipped() if "max_length" in row.reason] == ["1-reward", "2-dpo"]  # once

    console = Console(record=True, width=120)
    print_summary(console, folder)
    page = run_report(folder, read_run(folder))
    write_dataset(folder, tmp_path / "dataset", "mit")
    card = (tmp_path / "dataset/README.md").read_text()
    assert "| trainings: with other seeds; the metrics of answers after training are means | 3 |" in card
    for text in (console.export_text(), page):
        assert "seeds/3/train/2-dpo/model" in text and "standard deviation" in text and "2-dpo#2" in text
        assert str(trainings[2]["seed"]) in text


def test_a_policy_of_a_further_training_is_found_by_its_number(
    tmp_path: Path, model_folder: Path, trainer: Trainer
) -> None:
    folder, runs = run_to_end(write_workspace(tmp_path, model_folder, extra=TRAIN + "seeds: 2\n")), tmp_path / "runs"
    second = find_policy("test#2", runs)
    assert second.policy.folder == folder.path / "seeds/2/train/2-dpo/model"
    assert second.policy.reward == folder.path / "seeds/2/train/1-reward/model"
    assert second.training is not None and second.training.eval == folder.path / "seeds/2/eval"
    assert find_policy("test#1", runs).policy == find_policy("test", runs).policy
    assert find_policy(f"{folder.path}#2", runs).policy.name == "test#2"
    with pytest.raises(CaiError, match="has no training #3; it has #1, #2"):
        find_policy("test#3", runs)
    with pytest.raises(CaiError, match="is no run"):
        find_policy("tess#2", runs)
    alone = evaluation_claim(plan_evaluation(Options("test#2"), runs), second.training.eval)
    assert adds_to(alone.manifest, read_manifest(second.training.eval))  # to the run's own evaluation of it
    plan = plan_evaluation(Options("test", against=["test#2"]), runs)
    assert [policy.name for policy in plan.policies][1:] == ["test", "test#2"]


def test_every_training_is_verified(tmp_path: Path, model_folder: Path, trainer: Trainer) -> None:
    folder = run_to_end(write_workspace(tmp_path, model_folder, extra=TRAIN + "seeds: 2\n"))
    states = {check.part: check.state for check in verify_run(folder)}
    parts = ("train/2-dpo: data", "seeds/2/train/2-dpo: data", "seeds/2/train/2-dpo: seed", "seeds/2/eval: policy")
    assert {states[part] for part in parts} == {"matches"}
    (folder.path / "seeds/2/train/2-dpo/model/model.safetensors").write_text("others")
    assert {check.part for check in verify_run(folder) if check.state == "differs"} == {"seeds/2/eval: policy"}


def test_a_comparison_of_runs_with_seeds_tests_policies_over_trainings(
    tmp_path: Path, model_folder: Path, trainer: Trainer
) -> None:
    run_file = write_workspace(tmp_path, model_folder, 16, TRAIN + "seeds: 3\n")
    a, b = run_to_end(run_file, name="a"), run_to_end(run_file, "train.1.beta=0.5", "seed=1", name="b")
    better = {m.key: m for m in compare_runs([a, b]).pairs[0].metrics}["after_better"].effect
    assert better.trainings == (3, 3) and "3 + 3 trainings" in better.note
    assert better.p is not None


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, RunFolder]:
    """The tiny model trained in two runs that differ in `seeds` alone: 1, and 2."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(stage, "follow", lambda command, log, report: train_here(StageSpec.read(Path(command[-1]))))
        run_file = write_workspace(tmp_path_factory.mktemp("seeds"), tiny_model, extra=DPO)
        return run_to_end(run_file, name="one"), run_to_end(run_file, "seeds=2", name="two")


@pytest.mark.slow
def test_weights_differ_by_training_and_the_first_are_those_of_a_run_without_seeds(
    trained: tuple[RunFolder, RunFolder],
) -> None:
    one, two = trained
    assert one.preferences_jsonl.read_bytes() == two.preferences_jsonl.read_bytes()
    weights = [
        [(model / "model.safetensors").read_bytes() for training in run.trainings() if (model := training.policy())]
        for run in trained
    ]
    assert (len(weights[0]), len(weights[1])) == (1, 2)
    assert weights[0][0] == weights[1][0] != weights[1][1]
    assert [len(list(folder.glob("comparisons.jsonl"))) for folder in two.evaluations()] == [1, 1]
