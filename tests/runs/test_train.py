"""The training stages of a run on the tiny model: what feeds what, iterations, human labels."""

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from cai.config.errors import CaiError
from cai.data.jsonl import read_rows, write_rows
from cai.data.records import Preference, Skipped
from cai.inference.engine import ScriptedEngine
from cai.inference.reporter import Reporter
from cai.runs.folder import RunFolder, all_runs, open_run
from cai.runs.pipeline import execute, train_policy
from cai.runs.plan import iteration, make_plan
from cai.runs.verify import verify_run
from cai.training.stage import StageSpec
from tests.conftest import scripted, write_workspace
from tests.training.policies import pair

TRAIN = """
train:
  - {stage: reward, lora_r: 2, num_train_epochs: 1, holdout: 0.25, learning_rate: 1.0e-3}
  - {stage: ppo, lora_r: 2, updates: 2, rollouts: 4, per_device_train_batch_size: 4, max_tokens: 6, learning_rate: 1.0e-2}
"""


def execute_run(run_file: Path, *overrides: str, engines: list[ScriptedEngine] | None = None) -> list[RunFolder]:
    plan = make_plan(run_file, list(overrides), None, run_file.parent / "runs")
    return execute(plan, Reporter(Console(quiet=True)), False, scripted(engines))


def stage_file(folder: RunFolder, name: str) -> dict[str, Any]:
    specification: dict[str, Any] = json.loads((folder.train / name / "stage.json").read_text())
    return specification


@pytest.mark.slow
@pytest.mark.usefixtures("no_worker")
def test_the_policy_is_trained_against_the_reward_model_of_its_own_run(tmp_path: Path, tiny_model: Path) -> None:
    [folder] = execute_run(write_workspace(tmp_path, tiny_model, extra=TRAIN))
    reward, ppo = (stage_file(folder, name) for name in ("1-reward", "2-ppo"))
    assert ppo["reward"] == str(folder.train / "1-reward/model")
    assert reward["model"] == ppo["model"] == str(tiny_model)  # a reward model is no policy
    prompts = [json.loads(line)["id"] for line in Path(ppo["data"]).read_text().splitlines()]
    manifest = folder.manifest()
    assert not set(prompts) & set(manifest["held_out"])
    assert len(folder.evaluation()) == len(manifest["held_out"])
    summary = folder.summary()
    assert summary is not None
    training = summary["training"]
    assert training["1-reward"]["held_out"]["pairs"] > 0
    assert training["2-ppo"]["updates"] == 2
    assert training["2-ppo"]["score"].keys() == {"first_third", "last_third", "not_finite"}
    from cai.cli.run import print_summary

    console = Console(record=True, width=200)
    print_summary(console, folder)
    text = console.export_text()
    assert " held-out pairs" in text and "calibration error" in text
    assert "2 updates, the first → the last:" in text and " score " in text


@pytest.mark.parametrize(
    "output", ["checkpoints/checkpoint-1/trainer_state.json", "metrics.jsonl", "model/config.json"]
)
def test_other_settings_do_not_overwrite_what_an_unfinished_run_has_trained(
    tmp_path: Path, model_folder: Path, output: str
) -> None:
    run_file = write_workspace(tmp_path, model_folder)
    [folder] = execute_run(run_file)
    folder.summary_json.unlink()  # as if killed in training
    kept = [folder.train / "1-dpo" / output, folder.path / "report.html"]
    for path in kept:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    before = {path: path.read_bytes() for path in (folder.manifest_json, folder.run_yaml, folder.log, *kept)}
    with pytest.raises(CaiError, match=r"(?s)holds unfinished training .*limit: null → 5\n.*--name NEW.*--replace"):
        execute_run(run_file, "prompts.limit=5")
    assert {path: path.read_bytes() for path in before} == before


def test_an_unfinished_run_without_training_output_takes_other_settings(tmp_path: Path, model_folder: Path) -> None:
    run_file = write_workspace(tmp_path, model_folder)
    [folder] = execute_run(run_file)
    folder.summary_json.unlink()
    (folder.train / "1-dpo").mkdir(parents=True)
    (folder.train / "1-dpo/train.log").write_text("out of memory")  # the stage failed before its first update
    [again] = execute_run(run_file, "prompts.limit=5")
    assert len(again.prompts()) == 5


@pytest.mark.slow
@pytest.mark.usefixtures("no_worker")
def test_each_iteration_samples_from_the_policy_before_it(tmp_path: Path, tiny_model: Path) -> None:
    run_file = write_workspace(tmp_path, tiny_model, extra=TRAIN + "iterations: 2\n")
    engines: list[ScriptedEngine] = []
    first, second = execute_run(run_file, engines=engines)
    assert [folder.name for folder in (first, second)] == ["test/iteration-1", "test/iteration-2"]
    assert all(folder.summary() is not None for folder in (first, second))
    assert first.revisions()
    assert not second.revisions()
    judged = [row for row in first.preferences() if row.source == "judge"]
    again = second.preferences()
    assert {row.source for row in again} == {"judge"}
    assert {row.model for row in judged} != {row.model for row in again}  # the policy's own samples
    assert {row.judge for row in judged} == {row.judge for row in again}  # by the same judge
    for folder in (first, second):
        drift = json.loads((folder.eval / "drift.json").read_text())
        assert drift["answer"]["n"] > 0 and not drift["missing"]
    policy = str(first.train / "2-ppo/model")
    assert [stage_file(second, name)["model"] for name in ("1-reward", "2-ppo")] == [policy, policy]
    assert {row.before_model for row in first.evaluation()} == {row.before_model for row in second.evaluation()}

    runs = tmp_path / "runs"
    assert {folder.name for folder in all_runs(runs)} == {"test/iteration-1", "test/iteration-2"}
    assert open_run("test/iteration-2", runs).summary() is not None
    before = len(engines)
    execute_run(run_file, engines=engines)
    assert len(engines) == before  # nothing was asked again
    for folder in (first, second):
        assert [check for check in verify_run(folder) if check.state == "differs"] == []


ITERATED = "train: [{stage: sft}, {stage: reward, lora_r: 2}, {stage: ppo, lora_r: 2}, {stage: dpo}]\niterations: 3\n"


def specifications(tmp_path: Path, model: Path, extra: str = "") -> list[StageSpec[Any]]:
    """The stages of the third iteration, whose labels are on file: two of people in each, and one of its judge."""
    run_file = write_workspace(tmp_path, model, extra=ITERATED + extra)
    plan = make_plan(run_file, [], None, tmp_path / "runs")
    human = [pair(i, "yes", "no").model_copy(update={"source": "human"}) for i in range(2)]
    for number in (1, 2, 3):
        folder = iteration(plan, number, model).folder
        folder.path.mkdir(parents=True)
        write_rows(folder.preferences_jsonl, [*human, pair(10 + number, "yes", "no")])
    specs: list[StageSpec[Any]] = []

    def record(name: str, spec: StageSpec[Any], reporter: Reporter) -> tuple[Path, list[Skipped]]:
        specs.append(spec)
        return model, []

    scheduler = SimpleNamespace(timed=lambda name: nullcontext(), skipped=[])
    train_policy(iteration(plan, 3, model), scheduler, Reporter(Console(quiet=True)), record)  # type: ignore[arg-type]
    return specs


@pytest.mark.parametrize(("labels", "prompts"), [("all", [0, 1, 11, 12, 13]), ("new", [0, 1, 13])])
def test_a_later_reward_model_learns_all_labels_so_far_or_the_new_ones(
    labels: str, prompts: list[int], tmp_path: Path, model_folder: Path
) -> None:
    reward, _, dpo = specifications(tmp_path, model_folder, f"iterate: {{labels: {labels}}}\n")
    assert [row.prompt_id for row in read_rows(reward.data, Preference)] == [f"p{i}" for i in prompts]
    assert [row.prompt_id for row in read_rows(dpo.data, Preference)] == ["p0", "p1", "p13"]


def test_later_iterations_take_the_kl_from_the_policy_that_sft_made_or_from_the_last_one(
    tmp_path: Path, model_folder: Path
) -> None:
    (tmp_path / "first").mkdir()
    specs = specifications(tmp_path, model_folder, "iterate: {kl_anchor: first}\n")
    sft = tmp_path / "runs/test/iteration-1/train/1-sft/model"
    assert [spec.reference for spec in specs] == [None, sft, sft]
    specs[1].write(tmp_path / "stage.json")
    assert StageSpec.read(tmp_path / "stage.json").reference == sft
    (tmp_path / "last").mkdir()
    assert {spec.reference for spec in specifications(tmp_path / "last", model_folder)} == {None}


def test_human_labels_join_the_runs_own(tmp_path: Path, model_folder: Path) -> None:
    run_file = write_workspace(tmp_path, model_folder, extra=f"preferences: {{source: {tmp_path}/human.jsonl}}\n")
    held_out = make_held_out(run_file)
    rows = [
        {"prompt": "Why?", "chosen": "so", "rejected": "no", "weight": 1.5},
        {"prompt": "How?", "responses": ["a", "b", "c"]},
        {"prompt": "Same?", "chosen": "so", "rejected": "so"},
        {"id": "leak", "prompt": held_out, "chosen": "so", "rejected": "no"},
    ]
    (tmp_path / "human.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    [folder] = execute_run(run_file)
    human = [row for row in folder.preferences() if row.source == "human"]
    assert [(row.chosen, row.weight) for row in human] == [("so", 1.5), ("a", 1.0), ("a", 1.0), ("b", 1.0)]
    reasons = [row.reason for row in folder.skipped()]
    assert "chosen equals rejected" in reasons
    assert "its prompt is held out for evaluation" in reasons
    summary = folder.summary()
    assert summary is not None
    assert summary["preferences"]["by_source"]["human"] == 4


def make_held_out(run_file: Path) -> str:
    """The text of a prompt that the run holds out."""
    plain = run_file.with_name("plain.yaml")
    plain.write_text(run_file.read_text().split("preferences:")[0])
    text: str = make_plan(plain, [], None, run_file.parent / "none").held_out[0].messages[0]["content"]
    return text


@pytest.mark.parametrize(
    ("train", "settings", "message"),
    [
        ("{stage: dpo}", ["revise.label=off", "judge.samples=0"],
         r"dpo has no pairs .*: revise.label is off, judge.samples is 0, there are no pairs in `preferences`;"),
        ("{stage: reward}", ["revise.rounds=0", "judge.samples=1"], r"reward .* revise.rounds is 0, judge.samples is 1,"),
        ("{stage: kto, data: {revision: 0}}", ["judge.samples=0"], r"kto .*: data.revision is 0, judge.samples is 0,"),
        ("{stage: sft}", ["revise.rounds=0"], r"sft learns from revisions, and revise.rounds is 0"),
        ("{stage: dpo}", ["judge.samples=0", "iterations=2"], r"dpo .*: iterations after the first make no revisions,"),
    ],
)  # fmt: skip
def test_a_stage_with_nothing_to_learn_from_is_refused_before_any_call(
    tmp_path: Path, model_folder: Path, train: str, settings: list[str], message: str
) -> None:
    human = tmp_path / "human.jsonl"
    human.write_text(json.dumps({"prompt": "Why?", "chosen": "so", "rejected": "no"}))
    run_file = write_workspace(tmp_path, model_folder, extra=f"train: [{train}]\n")
    with pytest.raises(CaiError, match=rf"run.yaml: train\[0\]: {message}"):
        make_plan(run_file, settings, None, tmp_path / "runs")
    if "sft" not in train:  # pairs of a file are enough
        make_plan(run_file, [*settings, f"preferences.source={human}"], None, tmp_path / "runs")


def test_weights_that_a_loss_cannot_count_are_refused_before_any_call(tmp_path: Path, model_folder: Path) -> None:
    human = tmp_path / "human.jsonl"
    human.write_text(json.dumps({"prompt": "Why?", "chosen": "so", "rejected": "no"}))
    extra = f"preferences: {{source: {human}}}\ntrain: [{{stage: kto, data: {{human: 2.0}}}}]\n"
    run_file = write_workspace(tmp_path, model_folder, extra=extra)
    with pytest.raises(CaiError, match=r"train\[0\]: its pairs weigh from 1 to 2, .* the stage 'kto' counts all alike"):
        execute_run(run_file)
    assert not (tmp_path / "runs").exists()
    alone = ["train.0.data.judge=0", "train.0.data.revision=0"]  # what is left has one weight
    make_plan(run_file, alone, None, tmp_path / "runs")
    make_plan(run_file, ["judge.samples=0", "revise.label=off"], None, tmp_path / "runs")
    human.write_text(json.dumps({"prompt": "Why?", "chosen": "so", "rejected": "no", "weight": 0.5}))
    make_plan(run_file, [], None, tmp_path / "runs")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train=[{stage: ppo}]", "train[0].stage: ppo needs a reward model: add a reward stage before it"),
        ("train=[{stage: grpo}, {stage: reward}]", "train[0].stage: grpo needs a reward model"),
        ("train=[{stage: ppo, reward: none}]", "train[0].reward: 'none' not found"),
        ("train=[{stage: sft, mix: none.jsonl}]", "train[0].mix: 'none.jsonl' not found"),
        ("train=[{stage: reward}, {stage: ppo, ptx: none.jsonl}]", "train[1].ptx: 'none.jsonl' not found"),
        ("train=[{stage: reward, members: 2, lora_r: null}]", "members above 1 need a lora_r"),
        ("iterations=2", "iterations: needs a stage that trains on preferences or rewards"),
        ("preferences={source: none.jsonl}", "preferences.source: 'none.jsonl' not found"),
        (
            "preferences={source: a.jsonl, weight: 2}",
            "preferences.weight: 'weight' is now called 'train[N].data.human'",
        ),
        ("train=[{stage: dpo, data: preferences}]", "train[0].data: expected the weight of each source, such as"),
        ("train=[{stage: dpo, data: {ai: 1}}]", "train[0].data.ai: unknown key"),
        ("train=[{stage: dpo, data: {judge: -1}}]", "train[0].data.judge: expected a number of at least 0"),
        ("train=[{stage: kto, data: {judge: 0, revision: 0, human: 0}}]", "train[0].data: leaves out every source"),
        ("train=[{stage: ppoo}]", "expected one of 'sft', 'reward', 'ppo', 'dpo'"),
    ],
)
def test_what_training_lacks_is_reported_before_any_call(
    tmp_path: Path, model_folder: Path, override: str, expected: str
) -> None:
    with pytest.raises(CaiError) as caught:
        execute_run(write_workspace(tmp_path, model_folder), override)
    assert expected in str(caught.value)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("stages", "place"),
    [("{stage: sft, mix: FILE}", "train[0].mix"), ("{stage: reward}, {stage: ppo, ptx: FILE}", "train[1].ptx")],
)
def test_a_file_of_answers_is_read_before_any_call(tmp_path: Path, model_folder: Path, stages: str, place: str) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text('{"prompt": "Why?", "completion": "So."}\n{"question": "Why?"}\n', encoding="utf-8")
    run_file = write_workspace(tmp_path, model_folder)
    with pytest.raises(CaiError) as caught:
        execute_run(run_file, f"train=[{stages.replace('FILE', str(file))}]")
    assert f"run.yaml: {place}: {file}:2: unknown format of a completion" in str(caught.value)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("no_worker")
def test_the_prompts_of_ppo_that_are_too_long_are_listed(tmp_path: Path, tiny_model: Path) -> None:
    train = TRAIN.replace("max_tokens: 6", "max_tokens: 6, max_length: 76")
    run_file = write_workspace(tmp_path, tiny_model, extra=train)
    prompts = tmp_path / "prompts.jsonl"
    write = [json.loads(line) for line in prompts.read_text().splitlines()]
    for row in write[:3]:
        row["prompt"] = "A much longer question, which will not fit into the limit. " + row["prompt"]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in write))
    [folder] = execute_run(run_file, "train.0.max_length=1024")
    skipped = [row for row in folder.skipped() if row.stage == "2-ppo"]
    training = {p.id for p in folder.prompts()} - set(folder.manifest()["held_out"])
    assert {row.prompt_id for row in skipped} == {"p0", "p1", "p2"} & training
    assert all("longer than max_length, 76 tokens" in row.reason for row in skipped)


def test_null_trains_nothing(tmp_path: Path, model_folder: Path) -> None:
    run_file = write_workspace(tmp_path, model_folder, extra="train: [{stage: sft}]\n")
    plan = make_plan(run_file, ["train=null"], None, tmp_path / "runs")
    assert plan.train == plan.config.train == []
