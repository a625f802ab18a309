import math

import numpy as np
import pytest

from cai.data.records import Message, Sampled
from cai.evaluation.overoptimization import difference_of_shares, overoptimization, training_phases
from cai.stats.intervals import share

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


def test_a_rising_reward_while_the_referee_turns_away_is_over_optimisation() -> None:
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
def test_what_cannot_be_told_says_why(rows: list[Sampled], said: str) -> None:
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
