"""RLOO, GRPO and online DPO against our reward model."""

import json
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from cai.config.errors import CaiError
from cai.data.jsonl import write_rows
from cai.data.records import Messages, Prompt
from cai.inference.chat_template import load_tokenizer
from cai.training import online, reward, settings
from cai.training.online import reward_function
from cai.training.ppo import trainer
from cai.training.reward_model import RewardModel, combined
from cai.training.reward_source import Loading, TrainedReward
from cai.training.settings import GRPOConfig, OnlineDPOConfig, RewardConfig, RLOOConfig
from cai.training.stage import StageSpec
from cai.training.tokens import PromptIds, end_of_turn, prompt_ids, turn_ids
from tests.conftest import prompt
from tests.training.test_reward import planted

STAGES: dict[str, Any] = {"rloo": RLOOConfig, "grpo": GRPOConfig, "online_dpo": OnlineDPOConfig}
WEIGHTS = "model/model.safetensors"


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """The folder of an ensemble of two that likes exclamation marks and dislikes question marks."""
    folder = tmp_path_factory.mktemp("reward")
    settings = RewardConfig(
        stage="reward",
        members=2,
        per_device_train_batch_size=8,
        learning_rate=2e-2,
        lora_r=4,
        holdout=0.2,
        num_train_epochs=2,
    )
    reward.train(StageSpec(settings, planted(folder / "preferences.jsonl"), tiny_model, folder), lambda event: None)
    return folder / "model"


def prompts(folder: Path, count: int = 32) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "prompts.jsonl", [prompt(f"p{i}", f"question {i}") for i in range(count)])
    return folder / "prompts.jsonl"


def run(
    stage: str,
    model: Path,
    judges: Path,
    folder: Path,
    count: int = 32,
    report: Callable[[dict[str, Any]], None] = lambda event: None,
    **options: Any,
) -> list[dict[str, Any]]:
    """Train in this process; returns the lines of metrics.jsonl that speak of updates."""
    usual = {"stage": stage, "lora_r": None, "learning_rate": 1e-2, "max_tokens": 4, "save_steps": 1000}
    config = STAGES[stage].model_validate({**usual, **options})
    online.train(StageSpec(config, prompts(folder, count), model, folder, reward=judges), report)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def mean_score(policy: Path, judges: Path) -> float:
    """The reward model's mean score of answers sampled from a policy."""
    from transformers import AutoModelForCausalLM

    tokenizer, model = load_tokenizer(policy), AutoModelForCausalLM.from_pretrained(policy)
    start, end = prompt_ids(tokenizer, prompt("new", "a new question").messages), end_of_turn(tokenizer)
    torch.manual_seed(0)
    sampled = model.generate(
        torch.tensor([start] * 128), do_sample=True, top_k=0, max_new_tokens=4, eos_token_id=None, pad_token_id=0
    )
    return float(RewardModel(judges).scores([[*ids, end] for ids in sampled.tolist()]).mean())


def rewarding(
    model: Path, judges: Path, conversations: list[Messages], ends: set[int]
) -> tuple[TrainedReward, list[PromptIds]]:
    """A reward model that is loaded, and the prompts whose answers it scores."""
    tokenizer = load_tokenizer(model)
    source = TrainedReward(judges, tokenizer, model)
    source.load(Loading(ends, "cpu"))
    rows = [Prompt(id=f"p{i}", messages=messages) for i, messages in enumerate(conversations)]
    return source, [PromptIds(row, prompt_ids(tokenizer, row.messages)) for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_the_reward_models_score_of_the_policys_answers_rises(
    tmp_path: Path, tiny_model: Path, judges: Path, stage: str
) -> None:
    events: list[dict[str, Any]] = []
    size: dict[str, Any] = {"num_train_epochs": 4, "per_device_train_batch_size": 32}
    if stage == "online_dpo":  # whose batches count prompts
        size = {"num_train_epochs": 16, "per_device_train_batch_size": 16}
    lines = run(stage, tiny_model, judges, tmp_path, report=events.append, missing_eos_penalty=0.0, **size)
    assert events[0] == {"examples": 32, "too_long": []}
    assert len(lines) == (32 if stage == "online_dpo" else 16)
    assert mean_score(tmp_path / "model", judges) > mean_score(tiny_model, judges) + 0.2


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_training_interrupted_in_its_second_epoch_ends_with_the_same_bits(
    tmp_path: Path, tiny_model: Path, judges: Path, stage: str
) -> None:
    size = {"per_device_train_batch_size": 1 if stage == "online_dpo" else 4, "num_train_epochs": 2}
    whole = run(stage, tiny_model, judges, tmp_path / "whole", 8, lora_r=4, save_steps=6, **size)
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(tmp_path / "again/model")
    shutil.rmtree(tmp_path / "again/checkpoints/checkpoint-16")
    again = run(stage, tiny_model, judges, tmp_path / "again", 8, lora_r=4, save_steps=6, **size)
    assert [line["loss"] for line in again] == [line["loss"] for line in whole]
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()


@pytest.mark.slow
@pytest.mark.numeric
def test_a_reward_is_the_reward_models_score_of_the_very_ids(tiny_model: Path, judges: Path) -> None:
    tokenizer, judge = load_tokenizer(tiny_model), RewardModel(judges)
    end = end_of_turn(tokenizer)
    asked = [prompt("p", text).messages for text in ("hello", "a longer question")]
    whole = [turn_ids(tokenizer, messages, text) for messages, text in zip(asked, ("!!", "?"), strict=True)]
    starts = [prompt_ids(tokenizer, messages) for messages in asked]
    answers = [ids[len(start) :] for ids, start in zip(whole, starts, strict=True)]
    score = reward_function(RLOOConfig(stage="rloo"), *rewarding(tiny_model, judges, asked, {end}), {end})
    expected = judge.scores(whole).mean(dim=1).tolist()
    assert score(prompts=asked, completion_ids=answers) == expected
    padded = [[*ids, 0, 0, end] for ids in answers]  # as online DPO pads, by 0 or by the end itself
    assert score(prompts=asked, completion_ids=padded) == expected
    special = [[1, *ids] for ids in answers]  # a token that decoding would lose
    read = judge.scores([start + ids for start, ids in zip(starts, special, strict=True)]).mean(dim=1).tolist()
    assert score(prompts=asked, completion_ids=special) == read != expected


@pytest.mark.numeric
def test_the_penalty_and_the_uncertainty_enter_the_reward(tiny_model: Path, judges: Path) -> None:
    tokenizer, judge = load_tokenizer(tiny_model), RewardModel(judges)
    end, asked = end_of_turn(tokenizer), prompt("p", "hello").messages
    start, other_end = prompt_ids(tokenizer, asked), 60
    config = GRPOConfig(stage="grpo", uncertainty=0.7, missing_eos_penalty=3.0)
    score = reward_function(config, *rewarding(tiny_model, judges, [asked], {end, other_end}), {end, other_end})
    completions = [[70, end], [70], [70, other_end]]
    finished, open_ended, otherwise = score(prompts=[asked] * 3, completion_ids=completions)
    scores = judge.scores([[*start, 70, end]])
    [expected] = combined(scores, 0.7).tolist()
    assert finished == pytest.approx(expected)
    assert open_ended == pytest.approx(expected - 3)
    assert otherwise == pytest.approx(expected)  # whatever ended it, the score is read at the end of the turn
    assert abs(finished - scores[0].mean().item()) > 0.01  # the members differ


@pytest.mark.parametrize("stage", [pytest.param("rloo", marks=pytest.mark.slow), "grpo"])
def test_the_pull_to_the_starting_policy_is_on_unless_switched_off(
    tmp_path: Path, tiny_model: Path, judges: Path, stage: str
) -> None:
    found = {}
    variants: dict[str, dict[str, Any]] = {"default": {}, "0.05": {"beta": 0.05}, "off": {"beta": 0.0}}
    for name, more in variants.items():
        lines = run(stage, tiny_model, judges, tmp_path / name, count=4, num_train_epochs=2, **more)
        found[name] = (tmp_path / name / WEIGHTS).read_bytes()
        assert ("kl" in lines[-1]) == (name != "off")
    assert found["default"] == found["0.05"] != found["off"]


@pytest.mark.slow
def test_online_dpo_pulls_to_the_starting_policy(tmp_path: Path, tiny_model: Path, judges: Path) -> None:
    kl = {}
    variants: dict[str, dict[str, Any]] = {"default": {}, "strong": {"beta": 100.0}}
    for name, more in variants.items():
        lines = run("online_dpo", tiny_model, judges, tmp_path / name, learning_rate=3e-3, num_train_epochs=4, **more)
        kl[name] = abs(statistics.mean(line["objective/kl"] for line in lines[-4:]))
    assert lines[0]["beta"] == 100.0
    assert OnlineDPOConfig(stage="online_dpo").beta == 0.1
    assert kl["strong"] < kl["default"] / 2


@pytest.mark.parametrize("stage", [*STAGES, "ppo"])
def test_a_reward_model_of_another_vocabulary_is_refused(
    tmp_path: Path, tiny_model: Path, judges: Path, stage: str
) -> None:
    foreign = shutil.copytree(judges, tmp_path / "foreign")
    about = json.loads((foreign / "reward.json").read_text())
    (foreign / "reward.json").write_text(json.dumps({**about, "vocabulary": "another"}))
    with pytest.raises(CaiError, match="reads other tokens than"):
        if stage == "ppo":
            trainer.train(
                StageSpec(settings.PPOConfig(stage="ppo"), prompts(tmp_path), tiny_model, tmp_path, reward=foreign),
                print,
            )
        else:
            run(stage, tiny_model, foreign, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "lora"), [("rloo", 4), ("grpo", None), ("online_dpo", 4)])
def test_resumed_is_undisturbed_to_the_bit(
    tmp_path: Path, tiny_model: Path, judges: Path, stage: str, lora: int | None
) -> None:
    def interrupt(event: dict[str, Any]) -> None:
        if event.get("step") == 3:  # after the checkpoint of update 2, whose successor is made again
            raise KeyboardInterrupt

    options: dict[str, Any] = {
        "lora_r": lora,
        "save_steps": 2,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
    }
    options["count"] = 32 if stage == "online_dpo" else 8
    whole = run(stage, tiny_model, judges, tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        run(stage, tiny_model, judges, tmp_path / "broken", report=interrupt, **options)
    resumed = run(stage, tiny_model, judges, tmp_path / "broken", **options)
    assert len(whole) == 4
    assert [line["loss"] for line in resumed] == [line["loss"] for line in whole]
    assert (tmp_path / "broken" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()


def test_an_update_that_would_tear_a_prompts_answers_apart_is_refused() -> None:
    for config, stage in ((RLOOConfig, "rloo"), (GRPOConfig, "grpo")):
        config.model_validate(
            {"stage": stage, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 4, "num_generations": 6}
        )
        with pytest.raises(ValidationError, match="an update on 6 answers cannot hold all 4 of each prompt"):
            config.model_validate({"stage": stage, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 2})


@pytest.mark.slow
def test_prompts_that_fill_no_update_and_those_without_room_are_named(
    tmp_path: Path, tiny_model: Path, judges: Path
) -> None:
    with pytest.raises(CaiError, match="an update takes 4 prompts, and there are 3"):
        run("rloo", tiny_model, judges, tmp_path, count=3, per_device_train_batch_size=16)
    write_rows(tmp_path / "prompts.jsonl", [prompt("long", "hi " * 50), *(prompt(f"p{i}", "hi") for i in range(2))])
    events: list[dict[str, Any]] = []
    config = GRPOConfig(stage="grpo", max_tokens=4, max_length=60)
    online.train(StageSpec(config, tmp_path / "prompts.jsonl", tiny_model, tmp_path, reward=judges), events.append)
    assert events[0] == {"examples": 2, "too_long": ["long"]}


def test_answers_stop_at_the_end_of_turn_whatever_else_the_model_calls_its_end(
    tmp_path: Path, tiny_model: Path, judges: Path
) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model-of-another-end")
    generation = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps({**generation, "eos_token_id": 7}))
    tokenizer = load_tokenizer(model)
    end = end_of_turn(tokenizer)
    tokenizer.eos_token = "<|start|>"
    tokenizer.save_pretrained(model)
    run("rloo", model, judges, tmp_path / "run", count=2)
    saved = json.loads((tmp_path / "run/model/generation_config.json").read_text())
    assert {end, 7} <= set(saved["eos_token_id"])
