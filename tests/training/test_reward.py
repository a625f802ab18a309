"""The reward model: its loss, what it learns, how it is scored and reported."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cai.config.errors import CaiError
from cai.data.jsonl import write_rows
from cai.data.records import Message, Preference
from cai.runs.metrics import reward_lines
from cai.training.reward import (
    Pair,
    RankingCollator,
    SoftRewardTrainer,
    batch_elements,
    bootstrap,
    evaluate_reward_model,
    length_dependence,
    soft_preference_loss,
)
from cai.training.reward_model import RewardModel, combined, shares_weights
from cai.training.settings import RewardConfig
from cai.training.stage import StageSpec
from cai.training.tokens import end_of_turn, padding, prompt_ids, turn_ids
from tests.conftest import train_here

numbers = st.floats(-30, 30)
probabilities = st.floats(0, 1)


def preference(i: int, chosen: str, rejected: str, p: float = 1.0, **more: Any) -> Preference:
    messages = [Message(role="user", content=f"question {i}")]
    fields = {"prompt_id": f"p{i}", "messages": messages, "chosen": chosen, "rejected": rejected, "source": "judge"}
    return Preference.model_validate({**fields, "p": p, **more})


def planted(path: Path, count: int = 60) -> Path:
    """Answers with an exclamation mark are better than those with a question mark; the lengths say nothing."""
    rng = random.Random(0)
    write_rows(path, [preference(i, "!" * rng.randint(1, 4), "?" * rng.randint(1, 4)) for i in range(count)])
    return path


def config(**settings: Any) -> RewardConfig:
    usual = {
        "stage": "reward",
        "per_device_train_batch_size": 8,
        "learning_rate": 2e-2,
        "lora_r": 4,
        "holdout": 0.2,
        "num_train_epochs": 3,
    }
    return RewardConfig.model_validate({**usual, **settings})


def tokenizer_of(model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)


@pytest.mark.numeric
@given(st.lists(st.tuples(numbers, probabilities, st.floats(0.1, 3)), min_size=1, max_size=6))
def test_the_loss_is_the_cross_entropy_of_bradley_and_terry(rows: list[tuple[float, float, float]]) -> None:
    import math

    delta, p, weight = (torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True))
    naive = sum(
        w * (q * math.log1p(math.exp(-d)) + (1 - q) * math.log1p(math.exp(d))) for d, q, w in rows
    )  # −log σ(d) = log(1 + e^−d)
    assert soft_preference_loss(delta, p, weight).item() == pytest.approx(naive, rel=1e-9, abs=1e-9)


@pytest.mark.numeric
@given(probabilities.filter(lambda p: 0.01 < p < 0.99))
def test_the_loss_is_least_where_the_model_equals_the_label(p: float) -> None:
    label, weight = torch.tensor([p]), torch.ones(1)
    delta = torch.logit(label).requires_grad_()
    [gradient] = torch.autograd.grad(soft_preference_loss(delta, label, weight), delta)
    assert abs(gradient.item()) < 1e-6


@pytest.mark.numeric
@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(1, 100)), min_size=3, max_size=10))
def test_length_dependence_is_the_squared_correlation(rows: list[tuple[float, float]]) -> None:
    import numpy as np

    rewards, lengths = np.array(rows).T
    if rewards.std() < 0.1 or lengths.std() < 0.1:
        return
    expected = np.corrcoef(rewards, lengths)[0, 1] ** 2
    assert length_dependence(torch.tensor(rewards), torch.tensor(lengths)).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.numeric
def test_with_p_1_the_loss_is_trls(tmp_path: Path, tiny_model: Path) -> None:
    import datasets
    import trl

    tokenizer = tokenizer_of(tiny_model)
    end = end_of_turn(tokenizer)
    rows = [preference(i, "yes " * (i + 1), "no " * (4 - i)) for i in range(3)]
    ids = [[turn_ids(tokenizer, r.messages, text) for text in (r.chosen, r.rejected)] for r in rows]
    pairs = [Pair(r, a, b, (len(a), len(b))) for r, (a, b) in zip(rows, ids, strict=True)]
    arguments = trl.RewardConfig(
        str(tmp_path), bf16=False, use_cpu=True, report_to=[], max_length=256, center_rewards_coefficient=0.1
    )
    ours = SoftRewardTrainer(
        model=str(tiny_model),
        args=arguments,
        data_collator=RankingCollator(padding(tokenizer, end)),
        train_dataset=datasets.Dataset.from_list(batch_elements(pairs)),
        processing_class=tokenizer,
    )
    trls = trl.RewardTrainer(
        model=ours.model,
        args=arguments,
        train_dataset=datasets.Dataset.from_list([{"chosen_ids": a, "rejected_ids": b} for a, b in ids]),
        processing_class=tokenizer,
    )
    mine = ours.compute_loss(ours.model, ours.data_collator([ours.train_dataset[i] for i in range(3)]))
    theirs = trls.compute_loss(trls.model, dict(trls.data_collator([trls.train_dataset[i] for i in range(3)])))
    assert mine.item() == pytest.approx(theirs.item(), rel=1e-6)


def test_all_pairs_of_a_prompt_share_one_element_and_each_response_is_read_once() -> None:
    texts = {text: [ord(text)] for text in "abcd"}
    rows = [preference(0, a, b, p=0.75, weight=2.0) for a, b in ("ab", "ac", "ad", "bc", "bd", "cd")]
    other = preference(1, "a", "b")
    pairs = [Pair(r, texts[r.chosen], texts[r.rejected], (1, 1)) for r in [*rows, other]]
    ranking, single = batch_elements(pairs)
    assert ranking["responses"] == list(texts.values())
    assert ranking["pairs"] == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]
    batch = RankingCollator(pad=0)([ranking, single])
    assert batch["input_ids"].shape == (6, 1)
    assert batch["pairs"][-1].tolist() == [4, 5]
    assert batch["weight"][:6].sum().item() == pytest.approx(2 * batch["weight"][6].item())
    assert batch["p"].tolist() == [0.75] * 6 + [1.0]


def test_an_element_holds_at_most_nine_responses() -> None:
    rows = [preference(0, f"{i}", f"{i + 100}") for i in range(10)]
    elements = batch_elements([Pair(r, [int(r.chosen)], [int(r.rejected)], (1, 1)) for r in rows])
    assert [len(e["responses"]) for e in elements] == [8, 8, 4]
    assert sum(len(e["pairs"]) for e in elements) == 10


def test_a_bootstrap_is_as_large_and_repeats_some_for_others() -> None:
    elements = [{"responses": [[i]]} for i in range(50)]
    drawn = bootstrap(elements, 1)
    assert len(drawn) == 50
    assert 20 < len({e["responses"][0][0] for e in drawn}) < 45  # 1 − 1/e of them on average
    assert drawn == bootstrap(elements, 1) != bootstrap(elements, 2)


@pytest.mark.slow
def test_an_ensemble_trains_each_member_on_a_bootstrap_of_its_own(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []

    def watched(elements: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
        seeds.append(seed)
        return bootstrap(elements, seed)

    monkeypatch.setattr("cai.training.reward.bootstrap", watched)
    for members in (1, 2):
        settings = config(members=members, num_train_epochs=1, holdout=0)
        train_here(StageSpec(settings, planted(tmp_path / "p.jsonl", 8), tiny_model, tmp_path / f"{members}"))
    assert len(set(seeds)) == len(seeds) == 2


@pytest.mark.slow
def test_planted_preferences_are_recovered_by_every_member(tmp_path: Path, tiny_model: Path) -> None:
    data = planted(tmp_path / "preferences.jsonl")
    events: list[dict[str, Any]] = []
    folder = train_here(StageSpec(config(members=2), data, tiny_model, tmp_path / "reward"), events.append)
    assert events[0] == {"examples": 48, "too_long": [], "held_out": 12}
    report = json.loads((tmp_path / "reward/report.json").read_text())
    assert report["accuracy"]["mean"] == 1.0
    assert report["ensemble_agreement"] == 1.0
    assert abs(report["length_correlation"]) < 0.8
    assert sum(b["n"] for b in report["reliability"]) == 12
    assert not (tmp_path / "reward/members").exists()

    tokenizer = tokenizer_of(folder)
    ask = [Message(role="user", content="a new question")]
    model = RewardModel(folder)
    scores = model.scores([turn_ids(tokenizer, ask, text) for text in ("!!", "??")])
    assert scores.shape == (2, 2)
    assert (scores[0] > scores[1]).all()
    assert not torch.equal(scores[:, 0], scores[:, 1])  # two members, not one twice

    # On the policy's own copy of the weights the scores are the same, and the policy is left as it was.
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    assert shares_weights(folder, tiny_model)
    policy = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_model), LoraConfig(r=2, target_modules="all-linear")
    )
    trained = [name for name, p in policy.named_parameters() if p.requires_grad]
    shared = RewardModel(folder, on=policy)
    sequences = [turn_ids(tokenizer, ask, text) for text in ("!!", "??", "a longer answer")]
    torch.testing.assert_close(shared.scores(sequences), model.scores(sequences))
    assert [name for name, p in policy.named_parameters() if p.requires_grad] == trained
    assert policy.active_adapter == "default"


@pytest.mark.numeric
def test_training_and_scoring_read_the_score_at_the_same_token(tmp_path: Path, tiny_model: Path) -> None:
    folder = train_here(
        StageSpec(config(lora_r=None, holdout=0), planted(tmp_path / "p.jsonl", 16), tiny_model, tmp_path / "rm"), print
    )
    from transformers import AutoModelForSequenceClassification

    tokenizer = tokenizer_of(tiny_model)
    end = end_of_turn(tokenizer)
    ask = [Message(role="user", content="hello")]
    ids = turn_ids(tokenizer, ask, "an answer")
    whole = tokenizer.apply_chat_template([*ask, Message(role="assistant", content="an answer")], return_dict=True)[
        "input_ids"
    ]
    assert ids[-1] == end
    assert len(ids) < len(whole)  # the template writes a newline after the end of the turn
    assert ids[: len(prompt_ids(tokenizer, ask))] == prompt_ids(tokenizer, ask)
    theirs = AutoModelForSequenceClassification.from_pretrained(folder / "member-1")
    theirs.config.pad_token_id = padding(tokenizer, end)
    with torch.no_grad():
        expected = theirs(input_ids=torch.tensor([ids])).logits.item()
    batch = [ids, turn_ids(tokenizer, ask, "a much, much longer answer")]
    assert RewardModel(folder).scores(batch)[0, 0].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_interrupted_and_resumed_is_undisturbed(tmp_path: Path, tiny_model: Path) -> None:
    data, settings = (
        planted(tmp_path / "p.jsonl", 20),
        config(members=2, save_steps=2, num_train_epochs=2, per_device_train_batch_size=4),
    )

    def interrupt(event: dict[str, Any]) -> None:
        if event.get("step") == 11:  # of the second member
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_here(StageSpec(settings, data, tiny_model, tmp_path / "a"), interrupt)
    assert (tmp_path / "a/members/member-1").is_dir()
    for name in "ab":
        train_here(StageSpec(settings, data, tiny_model, tmp_path / name))
    for member in ("member-1", "member-2"):
        weights = [(tmp_path / n / "model" / member / "adapter_model.safetensors").read_bytes() for n in "ab"]
        assert weights[0] == weights[1]


@pytest.mark.slow
def test_length_control_makes_the_reward_depend_less_on_length(tmp_path: Path, tiny_model: Path) -> None:
    rng = random.Random(1)
    rows = []
    for i in range(60):  # the better answer is mostly, not always, the longer one; exclamation marks always tell
        long, short = rng.randint(6, 9), rng.randint(1, 4)
        a, b = (long, short) if rng.random() < 0.8 else (short, long)
        rows.append(preference(i, "!" * a, "?" * b))
    data = tmp_path / "p.jsonl"
    write_rows(data, rows)
    found = {}
    for weight in (0.0, 3.0):
        train_here(StageSpec(config(length_control=weight), data, tiny_model, tmp_path / f"{weight}"))
        found[weight] = json.loads((tmp_path / f"{weight}/report.json").read_text())
    assert abs(found[3.0]["length_correlation"]) < abs(found[0.0]["length_correlation"]) - 0.1


def test_over_long_pairs_are_named_and_none_left_is_an_error(tmp_path: Path, tiny_model: Path) -> None:
    data = tmp_path / "p.jsonl"
    write_rows(data, [preference(0, "yes", "no"), preference(1, "long " * 40, "no"), preference(2, "yes", "never")])
    events: list[dict[str, Any]] = []
    train_here(StageSpec(config(max_length=100, holdout=0), data, tiny_model, tmp_path / "a"), events.append)
    assert events[0] == {"examples": 2, "too_long": ["p1"], "held_out": 0}
    with pytest.raises(CaiError, match="3 pairs, none within max_length, 8 tokens"):
        train_here(StageSpec(config(max_length=8), data, tiny_model, tmp_path / "b"), events.append)


def test_a_loss_that_is_no_number_stops_the_training_and_keeps_the_last_checkpoint(
    tmp_path: Path, tiny_model: Path
) -> None:
    settings = config(lora_r=None, save_steps=1, num_train_epochs=3).model_copy(update={"learning_rate": 1e30})
    with pytest.raises(CaiError, match=r"(loss|grad_norm) is no finite number at update \d+"):
        train_here(StageSpec(settings, planted(tmp_path / "p.jsonl"), tiny_model, tmp_path / "rm"))
    from safetensors.torch import load_file

    kept = sorted((tmp_path / "rm/members/1/checkpoints").glob("checkpoint-*"))
    assert not (tmp_path / "rm/model").exists()
    for folder in kept:
        assert all(t.isfinite().all() for t in load_file(folder / "model.safetensors").values())


def test_pessimism_takes_the_spread_of_the_members_off_their_mean() -> None:
    scores = torch.tensor([[1.0, 3.0], [2.0, 2.0]])
    assert combined(scores, 0.0).tolist() == [2.0, 2.0]
    assert combined(scores, 0.5).tolist() == [1.5, 2.0]
    assert combined(scores[:, :1], 0.5).tolist() == [1.0, 2.0]


def test_an_ensemble_without_lora_is_refused() -> None:
    with pytest.raises(ValueError, match="members above 1 need a lora_r"):
        config(members=2, lora_r=None)


def test_a_folder_that_is_no_reward_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(CaiError, match="is not a reward model"):
        RewardModel(tmp_path)


@pytest.mark.parametrize(("count", "said"), [(1, "1 held-out pair"), (3, "3 held-out pairs")])
def test_a_hold_out_of_one_prompt_has_no_accuracy(tmp_path: Path, count: int, said: str) -> None:
    pairs = [Pair(preference(0, "yes", "no"), [1, 2], [1, 3], (1, 1))] * count
    report = evaluate_reward_model(tmp_path, pairs)  # no reward model is even loaded
    assert (report["pairs"], report["accuracy"], report["ece"]) == (count, None, None)
    assert reward_lines(report) == [f"accuracy not measured: {said}, of too few prompts"]
