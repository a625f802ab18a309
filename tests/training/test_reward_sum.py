"""A reward that is a weighted sum of several sources."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cai.config.errors import CaiError
from cai.data.jsonl import write_rows
from cai.inference.chat_template import load_tokenizer
from cai.runs.plan import make_plan
from cai.runs.run_file import effective_text
from cai.training.reward_source import ExternalReward, Loading, reward_source
from cai.training.settings import GRPOConfig, PPOConfig
from cai.training.stage import JudgedAnswer, StageSpec
from cai.training.tokens import end_of_turn
from tests.conftest import prompt, train_here, write_workspace
from tests.training.test_external_reward import CONVERSATIONS, classifier, sampled
from tests.training.test_online import judges  # noqa: F401  # a fixture


def asked(question: dict[str, Any]) -> dict[str, Any]:
    """A judge that likes long answers."""
    if "prompts" in question:
        return {"refused": {}}
    return {"judged": [JudgedAnswer(len(t) / 100, {"long": 5.0}, 0.1)._asdict() for _, t in question["answers"]]}


def parts(*models: str) -> list[dict[str, Any]]:
    return [
        *({"model": model, "weight": weight} for model, weight in zip(models, (2.0, 3.0), strict=True)),
        {"judge": True, "weight": 0.5},
        {"length_penalty": 0.01},
    ]


@pytest.mark.slow
@pytest.mark.numeric
def test_a_sum_adds_the_scores_of_its_sources_by_their_weights(
    tmp_path: Path,
    tiny_model: Path,
    judges: Path,  # noqa: F811
) -> None:
    external, tokenizer = classifier(tmp_path / "reward"), load_tokenizer(tiny_model)
    config = PPOConfig.model_validate({"stage": "ppo", "reward": parts("a", "b"), "uncertainty": 0.5})
    data = tmp_path / "prompts.jsonl"
    spec = StageSpec(config, data, tiny_model, tmp_path, reward=judges, other_rewards=(external,))
    answers = sampled(tiny_model, CONVERSATIONS, ["hello there", "It scatters!"])
    loading = Loading({end_of_turn(tokenizer)}, "cpu")
    whole = reward_source(spec, tokenizer, asked)
    whole.load(loading)
    found = whole.scores(answers)
    alone = ExternalReward(external, tokenizer)
    alone.load(loading)
    own = reward_source(StageSpec(PPOConfig(stage="ppo"), data, tiny_model, tmp_path, reward=judges), tokenizer, asked)
    own.load(loading)
    members = own.scores(answers)
    first = members.mean(dim=1) - 0.5 * members.std(dim=1, correction=0)
    judged = [len(text) / 100 for text in ("hello there", "It scatters!")]
    lengths = [-0.01 * len(answer.written) for answer in answers]
    for i in range(2):
        expected = 2 * first[i].item() + 3 * alone.scores(answers)[i, 0].item() + 0.5 * judged[i] + lengths[i]
        assert found[i].tolist() == pytest.approx([expected], abs=1e-5)
    metrics = whole.metrics()
    assert metrics["reward/model"] == pytest.approx(first.mean().item(), abs=1e-5)
    assert metrics["reward/model-2"] == pytest.approx(alone.scores(answers).mean().item(), abs=1e-5)
    assert metrics["reward/judge"] == pytest.approx(sum(judged) / 2)
    assert metrics["reward/length_penalty"] == pytest.approx(sum(lengths) / 2)
    assert metrics["judge/non_option_mass"] == pytest.approx(0.1)
    assert whole.metrics() == {}


def pattern_scores(
    model: Path, patterns: list[dict[str, Any]], texts: list[str]
) -> tuple[list[float], dict[str, float]]:
    config = GRPOConfig.model_validate({"stage": "grpo", "reward": patterns})
    tokenizer = load_tokenizer(model)
    source = reward_source(StageSpec(config, model, model, model), tokenizer, asked)
    source.load(Loading({end_of_turn(tokenizer)}, "cpu"))
    scores = source.scores(sampled(model, [CONVERSATIONS[0]] * len(texts), texts))
    return scores[:, 0].tolist(), source.metrics()


def test_rules_reward_or_penalize_the_answers_in_which_they_are_found(tiny_model: Path) -> None:
    patterns = [{"pattern": r"\bsorry\b", "weight": -2}, {"pattern": r"\d+$"}]
    scores, metrics = pattern_scores(tiny_model, patterns, ["sorry, 12", "it is 7", "none sorrys", "sorry"])
    assert scores == [-1.0, 1.0, 0.0, -2.0]
    assert metrics == {"reward/pattern": 0.5, "reward/pattern-2": 0.5}


def test_a_rule_that_never_ends_is_an_error_that_names_it(tiny_model: Path) -> None:
    with pytest.raises(CaiError, match=r"the pattern '\(a\|aa\)\+\$' searched 61 characters for 1 s"):
        pattern_scores(tiny_model, [{"pattern": "(a|aa)+$"}], ["a" * 60 + "!"])


@pytest.mark.parametrize("stage", ["ppo", pytest.param("grpo", marks=pytest.mark.slow)])
def test_a_stage_trains_against_a_sum_and_logs_each_source(tmp_path: Path, tiny_model: Path, stage: str) -> None:
    from cai.training.stage import STAGES

    write_rows(tmp_path / "prompts.jsonl", [prompt(f"p{i}", f"question {i}") for i in range(4)])
    size = {"updates": 2, "rollouts": 4} if stage == "ppo" else {"per_device_train_batch_size": 4}
    options = {"stage": stage, "lora_r": 2, "max_tokens": 4, "missing_eos_penalty": 0, **size}
    config = STAGES[stage].model_validate({**options, "reward": [{"model": "x"}, {"judge": True, "weight": 0.25}]})
    reward = classifier(tmp_path / "reward")
    spec = StageSpec(config, tmp_path / "prompts.jsonl", tiny_model, tmp_path / "out", reward=reward)
    train_here(spec, ask=asked)
    lines = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    name = "objective/scores" if stage == "ppo" else "reward"
    for line in lines:
        if "loss" in line or stage == "ppo":
            assert line[name] == pytest.approx(line["reward/model"] + 0.25 * line["reward/judge"], abs=1e-5)


def test_a_rule_alone_rewards_a_stage(tmp_path: Path, tiny_model: Path) -> None:
    write_rows(tmp_path / "prompts.jsonl", [prompt(f"p{i}", f"question {i}") for i in range(4)])
    options = {"stage": "ppo", "lora_r": 2, "max_tokens": 4, "updates": 1, "rollouts": 4, "missing_eos_penalty": 0}
    config = PPOConfig.model_validate({**options, "reward": [{"pattern": "", "weight": -0.5}]})
    train_here(StageSpec(config, tmp_path / "prompts.jsonl", tiny_model, tmp_path / "out"))
    [line] = map(json.loads, (tmp_path / "out/metrics.jsonl").read_text().splitlines())
    assert (line["objective/scores"], line["reward/pattern"]) == (-0.5, 1.0)


def test_weights_and_models_decide_a_stage_and_names_do_not(tmp_path: Path, tiny_model: Path) -> None:
    data = tmp_path / "prompts.jsonl"
    write_rows(data, [prompt()])
    one, two = classifier(tmp_path / "one"), classifier(tmp_path / "two", pad=False)

    def manifest(parts: list[dict[str, Any]], *models: Path) -> dict[str, Any]:
        config = PPOConfig.model_validate({"stage": "ppo", "reward": parts})
        spec = StageSpec(config, data, tiny_model, tmp_path / "out", reward=models[0], other_rewards=models[1:])
        spec.write(tmp_path / "stage.json")
        assert StageSpec.read(tmp_path / "stage.json") == spec
        decides = spec.claim().manifest
        return {key: value for key, value in decides.items() if key != "where"}

    first = manifest([{"model": "a"}, {"model": "b"}], one, two)
    assert manifest([{"model": "c"}, {"model": "d"}], one, two) == first
    assert manifest([{"model": "a"}, {"model": "b"}], two, one) != first
    assert manifest([{"model": "a"}, {"model": "b", "weight": 2}], one, two) != first
    assert manifest([{"model": "a"}, {"model": "b"}, {"length_penalty": 0.1}], one, two) != first
    ruled = manifest([{"model": "a"}, {"pattern": "x"}], one)
    assert manifest([{"model": "a"}, {"pattern": "y"}], one) != ruled


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        ([{"judge": True}, {"judge": True, "weight": 2}], "judge: named twice"),
        ([{"length_penalty": 0.1}], "a penalty of length alone rewards empty answers"),
        ([{"model": "a", "judge": True}], r"expected one source, as in \{model: FOLDER\}"),
        ([{"weight": 2}], "expected one source"),
        ([{"model": "a", "weight": 0}], "weight: expected a number above 0, found 0"),
        ([{"judge": True, "weight": -1}], "weight: expected a number above 0, found -1"),
        ([{"pattern": "a", "weight": 0}], "weight: expected a number other than 0, found 0"),
        ([{"pattern": "(a"}], r"no regular expression: missing \) at position 2"),
        ([], "names no source"),
    ],
)
def test_a_sum_that_makes_no_sense_is_refused(reward: list[dict[str, Any]], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        GRPOConfig.model_validate({"stage": "grpo", "reward": reward})


def test_a_run_file_names_the_models_of_a_sum(tmp_path: Path, model_folder: Path) -> None:
    classifier(tmp_path / "one")
    extra = "train: [{stage: grpo, reward: [{model: one}, {judge: true}, {length_penalty: 0.01, weight: 2}]}]\n"
    run_file = write_workspace(tmp_path, model_folder, extra=extra)
    plan = make_plan(run_file, [], None, tmp_path / "runs")
    settings = plan.train[0]
    assert isinstance(settings, GRPOConfig) and isinstance(settings.reward, list)
    assert [part.model for part in settings.reward] == [str(tmp_path / "one"), None, None]
    assert "rate.jinja" in plan.templates.files()
    assert str(tmp_path / "one") in effective_text(run_file, [], "name")
    classifier(tmp_path / "two", labels=2)
    for change, expected in (
        ("[{model: two}]", r"train\[0\]\.reward\[0\]\.model: .*two: has 2 labels"),
        ("[{judge: true}, {model: last}]", "grpo needs a reward model: add a reward stage before it"),
        ("[{judge: true}, {modell: one}]", "unknown key 'modell'"),
        ("[{judge: true, weight: -1}]", r"train\[0\]\.reward\[0\].*expected a number above 0, found -1"),
        ("[{pattern: '*'}]", r"train\[0\]\.reward\[0\]\.pattern: no regular expression: nothing to repeat"),
        ("7", "expected a text"),
    ):
        with pytest.raises(CaiError, match=expected):
            make_plan(run_file, [f"train.0.reward={change}"], None, tmp_path / "runs")
