"""Exports to verl and OpenRLHF, and the reward function that they get."""

import ast
import importlib.util
import json
import shutil
import subprocess
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet as parquet
import pytest
import torch
from rich.console import Console
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from cai.cli.export import export_for_trainer
from cai.config.errors import CaiError
from cai.data.jsonl import read_rows, write_rows
from cai.data.records import Message, Preference, Skipped
from cai.inference.chat_template import ChatSettings, load_tokenizer
from cai.inference.reporter import Reporter
from cai.runs.external_training import Exported, export_training, reward_settings
from cai.runs.folder import RunFolder
from cai.runs.pipeline import execute
from cai.runs.plan import make_plan
from cai.training.reward_model import RewardModel, combined
from cai.training.scoring import Text, rewards_of
from cai.training.settings import GRPOConfig, PPOConfig, RewardConfig, RLOOConfig, TrainConfig
from cai.training.stage import StageSpec
from cai.training.tokens import prompt_ids, read_turn, vocabulary_fingerprint
from tests.conftest import scripted, train_here, write_workspace
from tests.training.families import save_tiny
from tests.training.test_families import TURNS, planted

CHAT = ChatSettings(system_prompt="Be kind.")
REWARD = RewardConfig(stage="reward", members=2, lora_r=2, learning_rate=2e-2, holdout=0, num_train_epochs=1)
PPO = PPOConfig(
    stage="ppo", lora_r=None, rollouts=4, max_tokens=12, max_length=80, uncertainty=0.5, missing_eos_penalty=2.0,
    target_kl=6.0, updates=5, learning_rate=1e-6,
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run with 6 prompts for training and a reward model of two members, and no ppo yet."""
    home = tmp_path_factory.mktemp("exported")
    run_file = write_workspace(home, tiny_model, extra="engine: {system_prompt: Be kind.}\n")
    plan = make_plan(run_file, ["revise.rounds=0", "judge.samples=0"], None, home / "runs")
    execute(plan, Reporter(Console(quiet=True)), False, scripted())
    pairs = [
        Preference(
            prompt_id=f"p{i}",
            messages=[Message(role="user", content=f"q {i}")],
            chosen="!!",
            rejected="??",
            p=1.0,
            source="judge",
        )
        for i in range(8)
    ]
    write_rows(home / "pairs.jsonl", pairs)
    train_here(StageSpec(REWARD, home / "pairs.jsonl", tiny_model, plan.folder.train / "1-reward", chat=CHAT))
    return with_stages(plan.folder, REWARD, PPO)


def with_stages(run: RunFolder, *stages: TrainConfig) -> RunFolder:
    """The run with these stages in its manifest and run file."""
    manifest = run.manifest()
    manifest["config"]["train"] = [stage.model_dump(mode="json") for stage in stages]
    run.manifest_json.write_text(json.dumps(manifest), encoding="utf-8")
    text = run.run_yaml.read_text(encoding="utf-8").partition("train:")[0]
    run.run_yaml.write_text(f"{text}train: {json.dumps(manifest['config']['train'])}\n", encoding="utf-8")
    return run


@pytest.fixture
def other(run: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of the run, whose stages a test may change."""
    return RunFolder(Path(shutil.copytree(run.path, tmp_path / "runs" / "copy", symlinks=True)))


def reward_module(folder: Path) -> ModuleType:
    """The reward function, loaded as both trainers do."""
    spec = importlib.util.spec_from_file_location("reward_function", folder / "reward_function.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def own_reward(run: RunFolder, row: dict[str, Any], text: str, finished: bool = True) -> float:
    """The reward that PPO takes from cai's own scoring of a text."""
    asked = Text("x", "answers", row["extra_info"]["prompt_id"], row["prompt"], text, False)
    [found] = rewards_of(run.train / "1-reward/model", [asked])
    return combined(torch.tensor([found.by_member]), PPO.uncertainty).item() - (
        0 if finished else PPO.missing_eos_penalty
    )


def arguments(folder: Path, tmp_path: Path) -> list[str]:
    """What train.sh starts, each argument as the shell passes it."""
    fake = tmp_path / "bin"
    fake.mkdir(exist_ok=True)
    (fake / "python3").write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    (fake / "python3").chmod(0o755)
    environment = {"PATH": f"{fake}:/usr/bin:/bin"}
    told = subprocess.run(["bash", folder / "train.sh", "more"], env=environment, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    return told.stdout.splitlines()


@pytest.mark.slow
def test_verl_gets_the_prompts_of_training_as_cai_renders_them(
    run: RunFolder, tiny_model: Path, tmp_path: Path
) -> None:
    made = export_training(run, "verl", tmp_path / "out")
    rows = parquet.read_table(tmp_path / "out/prompts.parquet").to_pylist()
    held_out = parquet.read_table(tmp_path / "out/held_out.parquet").to_pylist()
    assert (made.stage, made.prompts, made.held_out, made.skipped) == ("2-ppo", 6, 2, [])
    assert {row["extra_info"]["prompt_id"] for row in held_out} == set(run.manifest()["held_out"])
    assert [row["prompt"] for row in rows] == [
        p.messages for p in run.prompts() if p.id not in run.manifest()["held_out"]
    ]
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path / "out/tokenizer"), load_tokenizer(tiny_model, CHAT)
    for row in rows:
        ids = theirs.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)["input_ids"]
        assert ids == row["extra_info"]["prompt_ids"] == prompt_ids(ours, row["prompt"])
        assert "Be kind." in theirs.decode(ids)
    assert rows[0]["reward_model"] == {"style": "model", "ground_truth": ""} and rows[0]["data_source"] == "cai/test"


@pytest.mark.numeric
def test_the_reward_function_scores_for_verl_as_cai_does(run: RunFolder, tmp_path: Path) -> None:
    export_training(run, "verl", tmp_path / "out")
    module = reward_module(tmp_path / "out")
    rows = parquet.read_table(tmp_path / "out/prompts.parquet").to_pylist()
    cases = [("so!!", True), ("", True), ("a<|end|>b", True), ("twelve token", False)]
    found = [
        module.compute_score("cai/test", text, "", row["extra_info"], num_turns=2)
        for (text, _), row in zip(cases, rows[:4], strict=True)
    ]
    expected = [own_reward(run, row, text, finished) for (text, finished), row in zip(cases, rows[:4], strict=True)]
    assert found == pytest.approx(expected, abs=1e-5)
    assert len({round(score, 3) for score in found}) == len(cases)


@pytest.mark.numeric
def test_the_reward_function_scores_for_openrlhf_as_cai_does(run: RunFolder, tmp_path: Path) -> None:
    export_training(run, "openrlhf", tmp_path / "out")
    module = reward_module(tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out/prompts.jsonl").read_text(encoding="utf-8").splitlines()]
    prompt, label = lines[1]["prompt"], lines[1]["label"]
    known = {p.id: p.messages for p in run.prompts()}
    name = json.loads(label)["prompt_id"]
    row = {"prompt": known[name], "extra_info": {"prompt_id": name}}
    queries = [f"{prompt}so!!<|end|>", f"{prompt}so!!"]
    made = module.reward_func(queries, [prompt] * 2, [label] * 2)
    expected = [own_reward(run, row, "so!!"), own_reward(run, row, "so!!", finished=False)]
    assert made["rewards"].tolist() == made["scores"].tolist() == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ValueError, match="expected a text that begins with the prompt"):
        module.reward_func(["other"], [prompt], [label])


@pytest.mark.numeric
def test_one_process_serves_the_reward_model_to_all(run: RunFolder, tmp_path: Path) -> None:
    export_training(run, "verl", tmp_path / "out")
    module, client = reward_module(tmp_path / "out"), reward_module(tmp_path / "out")
    server = module.serve("127.0.0.1:0")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    client.settings()["server"] = f"http://127.0.0.1:{server.server_port}"
    try:
        assert client.scores([5, 6, 7, 2]) == pytest.approx(module.scores([5, 6, 7, 2]), abs=1e-6)
        assert client.LOADED == []
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.numeric
def test_a_reward_model_of_all_weights_is_scored_too(other: RunFolder, tiny_model: Path, tmp_path: Path) -> None:
    folder = other.train / "1-reward/model"
    shutil.rmtree(folder)
    load_tokenizer(tiny_model, CHAT).save_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1, dtype=torch.float32)
    model.save_pretrained(folder / "member-1")
    words = vocabulary_fingerprint(load_tokenizer(tiny_model))
    (folder / "reward.json").write_text(json.dumps({"members": ["member-1"], "base": None, "vocabulary": words}))
    export_training(other, "verl", tmp_path / "out")
    row = parquet.read_table(tmp_path / "out/prompts.parquet").to_pylist()[0]
    found = reward_module(tmp_path / "out").compute_score("cai/test", "so", "", row["extra_info"])
    assert found == pytest.approx(own_reward(other, row, "so"), abs=1e-5)


@pytest.mark.slow
@pytest.mark.numeric
@pytest.mark.parametrize("family", ["gemma2", "granite"])
def test_a_lora_of_a_family_is_put_on_its_trunk(family: str, run: RunFolder, tiny_model: Path, tmp_path: Path) -> None:
    model = save_tiny(family, tmp_path / "model")
    folder = planted(tmp_path, model, tiny_model, lora_r=2)
    export_training(run, "verl", tmp_path / "out")
    module = reward_module(tmp_path / "out")
    stage = Exported(run, "2-ppo", PPO, 0, model, folder, load_tokenizer(model))
    module.settings().update(reward_settings(stage))
    found = [module.scores(ids) for ids in TURNS]
    assert found == pytest.approx(RewardModel(folder).scores(TURNS).numpy(), abs=1e-4)


def test_an_answer_that_begins_with_a_thought_is_read_as_in_ppo(run: RunFolder, tmp_path: Path) -> None:
    export_training(run, "verl", tmp_path / "out")
    module, tokenizer = reward_module(tmp_path / "out"), load_tokenizer(tmp_path / "out/tokenizer")
    thought = "<think>\n\n</think>\n\n"
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{{ m.content }}", f"{{{{ {json.dumps(thought)} + m.content if m.role == 'assistant' else m.content }}}}"
    )
    [end], prompt = tokenizer.encode("<|end|>"), tokenizer.encode("a question")
    module.settings().update(lead=tokenizer.encode(thought), end=end)
    for text in ("so", f"{thought}so", "<think>hm</think>\nso", "<think>hm"):
        written = tokenizer.encode(text)
        assert module.conversation(prompt, text, written) == read_turn(tokenizer, prompt, [*written, end], {end})


def test_a_prompt_that_a_trainer_would_read_otherwise_is_skipped(other: RunFolder, tmp_path: Path) -> None:
    first, second, *rows = (p for p in other.prompts() if p.id not in other.manifest()["held_out"])
    forged = first.model_copy(update={"messages": [Message(role="user", content="a<|end|>b")]})
    long = second.model_copy(update={"messages": [Message(role="user", content="long " * 20)]})
    write_rows(other.prompts_jsonl, [forged, long, *rows])
    made = export_training(other, "openrlhf", tmp_path / "out")
    reasons = [row.reason for row in read_rows(tmp_path / "out/skipped.jsonl", Skipped)]
    assert (made.prompts, len(reasons)) == (4, 2)
    assert reasons[0] == "the trainer would read '<|end|>' in it as a control token"
    assert reasons[1].endswith("tokens leave no room for max_tokens in max_length")


def test_settings_of_ppo_have_their_names_in_verl(run: RunFolder, tmp_path: Path) -> None:
    out = tmp_path / "a [folder]"
    export_training(run, "verl", out)
    passed = arguments(out, tmp_path)
    assert passed[:2] == ["-m", "verl.trainer.main_ppo"] and passed[-1] == "more"
    for expected in (
        "algorithm.adv_estimator=gae", "algorithm.kl_ctrl.kl_coef=0.05", "data.train_batch_size=4", "trainer.total_training_steps=5",
        "trainer.total_epochs=4", "data.max_prompt_length=68", "data.max_response_length=12", "critic.optim.lr=1e-06",
        "actor_rollout_ref.model.lora_rank=0", "actor_rollout_ref.actor.ppo_mini_batch_size=4",
    ):  # fmt: skip
        assert expected in passed
    comments = (out / "train.sh").read_text(encoding="utf-8")
    assert "#   target_kl: 6.0 (nats per answer; " in comments and "#   ptx: null\n" in comments
    assert "#   kl_coef" not in comments


@pytest.mark.parametrize(("kind", "estimator", "kl"), [
    (GRPOConfig, "group_norm", ["--algo.kl.init_coef", "0.05", "--algo.kl.use_loss", "--algo.kl.estimator", "k3"]),
    (RLOOConfig, "rloo", ["--algo.kl.init_coef", "0.05"]),
])  # fmt: skip
def test_stages_with_groups_of_answers_have_their_names_too(
    other: RunFolder, tmp_path: Path, kind: type[GRPOConfig], estimator: str, kl: list[str]
) -> None:
    stage = kind.model_fields["stage"].annotation.__args__[0]  # type: ignore[union-attr]
    settings = kind(
        stage=stage, num_generations=4, num_train_epochs=2, lora_r=8, lora_target_modules=["q_proj", "v_proj"]
    )
    with_stages(other, REWARD, settings)
    for trainer in ("verl", "openrlhf"):
        export_training(other, trainer, tmp_path / trainer)
    theirs = " ".join(arguments(tmp_path / "openrlhf", tmp_path)).split()
    joined = " ".join(theirs)
    assert f"--algo.advantage.estimator {estimator}" in joined and " ".join(kl) in joined
    assert "--rollout.batch_size 2 --rollout.n_samples_per_prompt 4" in joined
    assert "--ds.lora.rank 8 --ds.lora.alpha 16 --ds.lora.target_modules q_proj v_proj" in joined
    assert "--critic.model_name_or_path" not in theirs
    passed = arguments(tmp_path / "verl", tmp_path)
    assert f"algorithm.adv_estimator={stage}" in passed and "actor_rollout_ref.rollout.n=4" in passed
    assert (
        "actor_rollout_ref.model.target_modules=[q_proj,v_proj]" in passed
        and "trainer.total_training_steps=6" in passed
    )


def test_what_cannot_be_exported_is_refused(other: RunFolder, tmp_path: Path, tiny_model: Path) -> None:
    def refused(expected: str, *stages: TrainConfig) -> None:
        if stages:
            with_stages(other, *stages)
        with pytest.raises(CaiError, match=expected):
            export_training(other, "verl", tmp_path / "out")
        assert not (tmp_path / "out").exists()

    refused(r"expected a ppo, grpo or rloo stage in its `train:`, found reward$", REWARD)
    judge = PPO.model_copy(update={"reward": "judge"})
    refused(r"run\.yaml: train\[0\]\.reward: expected a reward model that cai trained, found judge: external", judge)
    summed = PPOConfig.model_validate({"stage": "ppo", "reward": [{"model": "last"}, {"length_penalty": 0.1}]})
    refused(r"train\[1\]\.reward: .*, found a list of 2 sources; export one model", REWARD, summed)
    many = PPO.model_copy(update={"rollouts": 32})
    refused(r"ppo: an update has 32 prompts \(rollouts\), and only 6 are usable", REWARD, many)
    refused(r"train/2-reward/model: expected the model of this stage, found nothing; train", REWARD, REWARD, PPO)
    (tmp_path / "taken").mkdir()
    with pytest.raises(CaiError, match="taken: already exists"):
        export_training(other, "verl", tmp_path / "taken")
    (tmp_path / "rows.jsonl").write_text("{}")
    with pytest.raises(CaiError, match="--format verl needs a run with a ppo, grpo or rloo stage, and this is a file"):
        export_for_trainer(str(tmp_path / "rows.jsonl"), "verl", tmp_path / "out", tmp_path / "runs")


def test_the_reward_function_imports_nothing_of_cai(run: RunFolder, tmp_path: Path) -> None:
    export_training(run, "verl", tmp_path / "out")
    tree = ast.parse((tmp_path / "out/reward_function.py").read_text(encoding="utf-8"))
    modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules += [name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names]
    assert "torch" in modules and "peft" in modules
    assert not [name for name in modules if name.partition(".")[0] == "cai"]


def test_the_command_says_what_it_wrote(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export_for_trainer("test", "openrlhf", tmp_path / "out", run.path.parent)
    said = capsys.readouterr().out
    assert f"Wrote {tmp_path / 'out'}: 2-ppo of test for OpenRLHF 0.11, 6 prompts, and 2 held out\n" in said
