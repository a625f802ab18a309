import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from cai.config.errors import CaiError
from cai.data.jsonl import each_row, write_rows
from cai.data.records import Message, Prompt, Sampled, Skipped
from cai.evaluation.monitors import difference_of_shares, overoptimization, read_samples, training_phases
from cai.stats.intervals import share
from cai.training.tokens import prompt_ids

pytestmark = pytest.mark.numeric


def sample(step: int, score: float, p: float | None) -> Sampled:
    return Sampled(
        step=step,
        prompt_id=f"q{step}",
        messages=[Message(role="user", content="?")],
        text="a",
        score=score,
        kl=step / 10,
        p=p,
    )


def test_a_training_is_reported_in_three_phases_of_its_updates() -> None:
    found = training_phases(
        [sample(step, step / 10, 0.9 if step < 6 else 0.1) for step in range(1, 10) for _ in range(2)]
    )
    assert [(s.first, s.last, s.samples) for s in found] == [(1, 3, 6), (4, 6, 6), (7, 9, 6)]
    assert [s.gold.mean for s in found if s.gold is not None] == pytest.approx([1, 2 / 3, 0])
    assert [s.proxy.mean for s in found if s.proxy is not None] == pytest.approx([0.2, 0.5, 0.8])
    assert found[0].kl == pytest.approx(0.2)


@pytest.mark.parametrize(("samples", "parts"), [(0, 0), (3, 0), (4, 1), (8, 2), (11, 2), (12, 3)])
def test_few_samples_make_fewer_phases(samples: int, parts: int) -> None:
    assert len(training_phases([sample(step, 0.0, 0.5) for step in range(samples)])) == parts


def test_a_rising_reward_while_the_eval_judge_disagrees_is_overoptimization() -> None:
    rows = [sample(step, step / 10, 0.9 if step < 30 else 0.1) for step in range(90)]
    found = overoptimization("run", training_phases(rows), "")
    assert found.value is not None
    assert (found.state, found.value.mean, found.here, found.reference) == ("warns", -1.0, 0.0, 1.0)
    liked = [sample(step, step / 10, 0.9 if step > 20 or step % 2 else 0.1) for step in range(90)]
    assert overoptimization("run", training_phases(liked), "").state == "fine"


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "not by PPO"),
        ([sample(step, 0.0, 0.5) for step in range(4)], "not by PPO"),
        ([sample(step, -step / 10, 0.5) for step in range(30)], "did not rise"),
        ([sample(step, step / 10, None) for step in range(30)], "no scores or no verdicts"),
        ([sample(step, math.nan, 0.5) for step in range(30)], "no scores or no verdicts"),
    ],
)
def test_a_missing_metric_has_a_reason(rows: list[Sampled], said: str) -> None:
    found = overoptimization("run", training_phases(rows), "not by PPO")
    assert found.state == "not measured"
    assert said in found.missing


def test_intervals_of_differences_hold_the_truth_as_often_as_they_say() -> None:
    rng, held = np.random.default_rng(0), 0
    for _ in range(600):
        one, other = (share((rng.random(12) < rate).astype(float).tolist()) for rate in (0.8, 0.5))
        found = difference_of_shares(one, other)
        held += found.low is not None and found.high is not None and found.low <= -0.3 <= found.high
    assert 0.92 <= held / 600 <= 0.99


@pytest.fixture
def trained(tiny_model: Path, tmp_path: Path) -> Path:
    """A PPO stage with three samples: two of known prompts, one of another."""
    prompts = [Prompt(id=f"q{n}", messages=[Message(role="user", content=f"Question {n}?")]) for n in range(3)]
    write_rows(tmp_path / "prompts.jsonl", prompts[:2])
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    lines = [
        {"step": 5 * n, "prompt": tokenizer.decode(prompt_ids(tokenizer, prompt.messages)), "score": n / 2, "kl": 0.1,
         "response": f" Answer {n}.<|end|>", "tokens": 3}
        for n, prompt in enumerate(prompts)
    ]  # fmt: skip
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    shutil.copytree(tiny_model, tmp_path / "model")
    return tmp_path


def samples_of(stage: Path) -> tuple[list[Sampled], list[Skipped]]:
    return read_samples(stage / "samples.jsonl", stage / "model", list(each_row(stage / "prompts.jsonl", Prompt)))


def test_samples_get_back_their_prompts_and_lose_the_token_that_ended_them(trained: Path) -> None:
    samples, skipped = samples_of(trained)
    assert [(s.step, s.prompt_id, s.text, s.score, s.p) for s in samples] == [
        (0, "q0", "Answer 0.", 0.0, None),
        (5, "q1", "Answer 1.", 0.5, None),
    ]
    assert samples[1].messages == [Message(role="user", content="Question 1?")]
    assert [(row.prompt_id, row.failed) for row in skipped] == [("update 10", False)]


def test_without_its_prompts_every_sample_is_skipped(trained: Path) -> None:
    (trained / "prompts.jsonl").write_text("", encoding="utf-8")
    samples, skipped = samples_of(trained)
    assert (samples, len(skipped)) == ([], 3)


def test_a_damaged_file_of_samples_is_an_error_with_its_line(trained: Path) -> None:
    path = trained / "samples.jsonl"
    path.write_text(path.read_text(encoding="utf-8") + '{"step": 3}\n', encoding="utf-8")
    with pytest.raises(CaiError, match=r"samples\.jsonl:4: not a sample of PPO: 'prompt'"):
        samples_of(trained)
