import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cai.data.jsonl import read_rows, write_rows
from cai.data.records import Answer, Message, Messages, Preference, Scored
from cai.training.reward_model import RewardModel
from cai.training.scoring import ScoringSpec, Text, Writer, log_probabilities, score
from cai.training.settings import RewardConfig
from cai.training.stage import StageSpec
from tests.conftest import train_here


def conversation(text: str) -> Messages:
    return [Message(role="user", content=text)]


def text(number: int, written: str, truncated: bool = False, policy: str = "run") -> Text:
    return Text(policy, "answers", f"q{number}", conversation(f"Question {number}?"), written, truncated)


def one_by_one(model: Path, item: Text, temperature: float) -> tuple[int, float]:
    """The same by a forward pass over this answer alone, without padding."""
    tokenizer, network = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
    before = tokenizer.apply_chat_template(item.messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    answer = tokenizer(item.text)["input_ids"] + ([] if item.truncated else [tokenizer.eos_token_id])
    with torch.no_grad():
        logits = network(torch.tensor([before + answer])).logits[0] / temperature
    logps = logits.log_softmax(-1)[range(len(before) - 1, len(before) + len(answer) - 1), answer]
    return len(answer), logps.sum().item()


@pytest.fixture(scope="module")
def other_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with other weights."""
    folder = tmp_path_factory.mktemp("other")
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.numeric
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_are_those_of_each_answer_alone(tiny_model: Path, temperature: float) -> None:
    texts = [text(i, "word " * i + "end", truncated=i % 2 == 0) for i in (7, 1, 3, 2, 9, 4)]
    found = log_probabilities(tiny_model, texts, temperature)
    for item, (tokens, nats, reason) in zip(texts, found, strict=True):
        assert nats is not None
        assert (tokens, nats) == pytest.approx(one_by_one(tiny_model, item, temperature), abs=1e-3)
        assert reason == ""


def test_an_empty_truncated_answer_has_no_probability(tiny_model: Path) -> None:
    [empty, ended] = log_probabilities(tiny_model, [text(1, "", truncated=True), text(2, "")], 1.0)
    assert (empty.nats, empty.reason) == (None, "the answer is empty")
    assert ended.tokens == 1  # its end token


def spec(folder: Path, reference: Path, policies: list[Writer], **changes: object) -> ScoringSpec:
    rows = [
        Answer(policy=name, prompts=prompts, prompt_id=f"q{i}", messages=conversation(f"Question {i}?"),
               text=f"{name} says {i}", truncated=False, model="m")
        for name in ("run", "before") for prompts in ("held_out", "red_team") for i in range(3)
    ]  # fmt: skip
    write_rows(folder / "answers.jsonl", rows)
    given = {
        "answers": folder / "answers.jsonl", "prompts": "held_out", "reference": reference, "policies": policies,
        "temperature": 1.0, "reward": None, "pairs": None, "pairs_limit": 2, "out": folder / "scores.jsonl",
    }  # fmt: skip
    return ScoringSpec.model_validate(given | changes)


@pytest.mark.numeric
def test_a_policy_that_is_the_reference_has_no_divergence_and_another_one_has_some(
    tiny_model: Path, other_model: Path, tmp_path: Path
) -> None:
    events: list[dict[str, object]] = []
    score(
        spec(tmp_path, tiny_model, [Writer(name="run", folder=tiny_model), Writer(name="before", folder=other_model)]),
        events.append,
    )
    rows = read_rows(tmp_path / "scores.jsonl", Scored)
    assert [(r.policy, r.prompt_id) for r in rows] == [(name, f"q{i}") for name in ("run", "before") for i in range(3)]
    for row in rows:
        assert row.logp is not None and row.reference_logp is not None
        if row.policy == "run":
            assert row.logp == pytest.approx(row.reference_logp, abs=1e-4)
        else:
            assert abs(row.logp - row.reference_logp) > 0.1
    assert [event["step"] for event in events] == [1, 2, 3]


def test_models_of_different_tokens_are_not_compared(tiny_model: Path, tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    AutoModelForCausalLM.from_pretrained(tiny_model).save_pretrained(odd)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.add_tokens(["<other>"])
    tokenizer.save_pretrained(odd)
    score(spec(tmp_path, tiny_model, [Writer(name="run", folder=odd)]), lambda event: None)
    rows = [row for row in read_rows(tmp_path / "scores.jsonl", Scored) if row.policy == "run"]
    assert {(row.logp, row.reference_logp, row.reason) for row in rows} == {
        (None, None, "the policy and the reference read different tokens")
    }


@pytest.mark.slow
@pytest.mark.numeric
def test_rewards_are_the_reward_models_and_pairs_are_scored_beside_the_answers(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [
        Preference(
            prompt_id=f"p{i}",
            messages=conversation(f"Pair {i}?"),
            chosen=f"good {i}",
            rejected="bad",
            p=0.9,
            source="judge",
        )
        for i in range(6)
    ]
    write_rows(tmp_path / "pairs.jsonl", pairs)
    settings = RewardConfig(stage="reward", members=2, num_train_epochs=1, lora_r=2)
    reward = train_here(StageSpec(settings, tmp_path / "pairs.jsonl", tiny_model, tmp_path / "reward"))
    score(spec(tmp_path, tiny_model, [], reward=reward, pairs=tmp_path / "pairs.jsonl"), lambda event: None)
    rows = read_rows(tmp_path / "scores.jsonl", Scored)
    assert [(r.of, r.policy, r.prompt_id) for r in rows][6:] == [
        ("pairs", side, f"{i}") for i in range(2) for side in ("chosen", "rejected")
    ]
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    whole = tokenizer.apply_chat_template(
        [*pairs[1].messages, Message(role="assistant", content="bad")], return_dict=True
    )["input_ids"]
    while whole[-1] != tokenizer.eos_token_id:
        whole.pop()
    assert rows[-1].rewards == pytest.approx(RewardModel(reward).scores([whole])[0].tolist(), abs=1e-4)
    assert all(row.logp is None and row.reason == "" and len(row.rewards) == 2 for row in rows)

    def broken(self: RewardModel, sequences: list[list[int]]) -> torch.Tensor:
        return torch.full((len(sequences), 2), math.nan)

    monkeypatch.setattr(RewardModel, "scores", broken)
    score(spec(tmp_path, tiny_model, [], reward=reward), lambda event: None)
    rows = read_rows(tmp_path / "scores.jsonl", Scored)
    assert {(tuple(row.rewards), row.reason) for row in rows} == {((), "its rewards are nan, nan")}
    assert "NaN" not in (tmp_path / "scores.jsonl").read_text(encoding="utf-8")
    json.loads((tmp_path / "scores.jsonl").read_text(encoding="utf-8").splitlines()[0])
