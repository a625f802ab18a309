import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from cai.config.errors import CaiError
from cai.data.jsonl import write_rows
from cai.data.records import Answer, Message, Scored
from cai.evaluation import scores
from cai.evaluation.evaluation_plan import EvaluationPlan
from cai.evaluation.monitors import Monitor
from cai.evaluation.scores import (
    Reward,
    divergence,
    divergence_monitor,
    length_correlation,
    ratio_of_groups,
    reward,
    reward_monitors,
)
from cai.inference.reporter import Reporter
from cai.runs.evaluate import Options, plan_evaluation
from cai.stats.intervals import bootstrap_mean, share
from tests.runs.test_evaluate import make_run

pytestmark = pytest.mark.numeric


def scored(
    number: int, logp: float | None = -10.0, reference: float | None = -12.0, tokens: int = 5,
    rewards: tuple[float, ...] = (), policy: str = "run", reason: str = "",
) -> Scored:  # fmt: skip
    return Scored(
        policy=policy, of="answers", prompt_id=f"q{number}", tokens=tokens, logp=logp, reference_logp=reference,
        rewards=list(rewards), reason=reason,
    )  # fmt: skip


def test_kl_is_the_mean_log_ratio_and_finds_a_planted_one() -> None:
    """Answers of three tokens drawn from one distribution, whose KL from another is known."""
    rng, p, q = np.random.default_rng(0), np.array([0.7, 0.2, 0.1]), np.array([0.3, 0.3, 0.4])
    rows = []
    for n in range(400):
        drawn = rng.choice(3, size=3, p=p)
        rows.append(scored(n, float(np.log(p[drawn]).sum()), float(np.log(q[drawn]).sum()), tokens=3))
    found = divergence("run", rows)
    truth = 3 * float((p * np.log(p / q)).sum())
    assert found.answer is not None and found.answer.low is not None and found.answer.high is not None
    assert found.answer.low < truth < found.answer.high
    assert found.token == pytest.approx(found.answer.mean / 3)


def test_answers_without_a_probability_are_counted_and_none_at_all_gives_a_reason() -> None:
    found = divergence("run", [scored(0), scored(1, None, -3.0, reason="the answer is empty"), scored(2, math.nan)])
    assert found.answer is not None and (found.answer.mean, found.skipped) == (2.0, 2)
    assert divergence("run", [], "greedy").missing == "greedy"
    nothing = divergence("run", [scored(0, None, None, reason="different tokens")])
    assert (nothing.answer, nothing.token, nothing.missing) == (None, None, "different tokens")
    assert divergence_monitor(nothing, 30.0).missing == "different tokens"


def test_kl_far_out_is_warned_of_and_near_by_is_fine() -> None:
    far = divergence("run", [scored(n, -10.0, -50.0 - n) for n in range(20)])
    assert divergence_monitor(far, 30.0).state == "warns"
    near = divergence("run", [scored(n, -10.0, -11.0 - n % 3) for n in range(20)])
    assert divergence_monitor(near, 30.0).state == "fine"


def test_rewards_are_means_over_members_and_gains_are_paired() -> None:
    scores = {
        (policy, f"q{n}"): scored(n, rewards=(base + n, base + n + 2.0), policy=policy)
        for policy, base in (("run", 1.0), ("before", 0.0))
        for n in range(10)
    }
    del scores["before", "q9"]
    ids = [f"q{n}" for n in range(10)]
    found = reward("run", "before", ids, scores, {"q0": 0.9, "q1": 0.4, "q2": 0.5})
    assert found.score is not None and found.gain is not None and found.agrees is not None
    assert found.score.mean == pytest.approx(1.0 + 4.5 + 1.0)
    assert (found.gain.mean, found.gain.n) == (pytest.approx(1.0), 9)
    assert (found.agrees.mean, found.agrees.n) == (0.5, 3)  # right, wrong, and a tie
    assert reward("before", "before", ids, scores, {}).gain is None


def test_rewards_that_are_no_numbers_are_skipped_and_counted() -> None:
    scores = {("run", f"q{n}"): scored(n, rewards=(math.nan,) if n < 2 else (1.0,)) for n in range(5)}
    found = reward("run", "before", [f"q{n}" for n in range(5)], scores, {})
    assert found.score is not None and (found.score.mean, found.score.n, found.skipped) == (1.0, 3, 2)
    broken = {("run", "q0"): scored(0, rewards=(math.inf,))}
    assert reward("run", "before", ["q0"], broken, {}).missing == "no answer has a finite score"
    assert reward("run", "before", ["q0"], {}, {}, "no reward model").missing == "no reward model"


def monitors(
    rewards: list[tuple[float, ...]],
    tokens: list[int],
    pairs: list[tuple[Scored, Scored]],
    found: Reward,
    accuracy: float | None,
) -> dict[str, Monitor]:
    answers = [
        (scored(n, rewards=r, tokens=t), scored(n, rewards=tuple(0.0 for _ in r), policy="before"))
        for n, (r, t) in enumerate(zip(rewards, tokens, strict=True))
    ]
    return {m.name: m for m in reward_monitors(found, answers, pairs, accuracy)}


NOTHING = Reward(policy="run", score=None, gain=None, agrees=None, skipped=0, missing="")


def test_a_reward_that_is_length_is_warned_of() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(10, 100, 40).tolist()
    long = monitors([(t / 10,) for t in tokens], tokens, [], NOTHING, None)["reward-length correlation"]
    assert long.value is not None and (long.state, long.value.mean) == ("warns", pytest.approx(1.0))
    short = monitors([(-t / 10,) for t in tokens], tokens, [], NOTHING, None)["reward-length correlation"]
    assert (short.state, short.threshold) == ("warns", -0.5)
    even = monitors(
        [(float(rng.normal()),) for _ in range(400)], rng.integers(10, 100, 400).tolist(), [], NOTHING, None
    )
    assert even["reward-length correlation"].state == "fine"
    alike = monitors([(1.0,)] * 20, tokens[:20], [], NOTHING, None)["reward-length correlation"]
    assert (alike.state, alike.missing) == ("not measured", "rewards or lengths have no variance")


def test_the_correlation_is_pearsons() -> None:
    rng = np.random.default_rng(3)
    tokens, rewards = rng.integers(5, 60, 30), rng.normal(0, 1, 30)
    found = length_correlation(
        [scored(n, rewards=(float(r),), tokens=int(t)) for n, (t, r) in enumerate(zip(tokens, rewards, strict=True))]
    )
    assert found is not None
    assert found.mean == pytest.approx(np.corrcoef(tokens, rewards)[0, 1])
    assert length_correlation([scored(0, rewards=(1.0,))]) is None


def pair(spread: float, number: int) -> tuple[Scored, Scored]:
    return scored(number, rewards=(1.0, 1.0 + spread)), scored(number, rewards=(0.0, 0.0))


def test_members_that_disagree_more_on_fresh_answers_than_on_labelled_ones_are_warned_of() -> None:
    rng = np.random.default_rng(0)
    tokens, fresh = [10] * 30, [(1.0, 1.0 + float(s)) for s in rng.uniform(2, 4, 30)]
    labelled = [pair(float(s), n) for n, s in enumerate(rng.uniform(0.5, 1.5, 30))]
    found = monitors(fresh, tokens, labelled, NOTHING, None)["ensemble"]
    assert found.value is not None and (found.state, found.value.mean) == ("warns", pytest.approx(3, abs=0.4))
    assert monitors(fresh, tokens, [pair(3.0, n) for n in range(30)], NOTHING, None)["ensemble"].state == "fine"
    for rewards, pairs, said in (
        ([(1.0,)] * 30, [(scored(0, rewards=(1.0,)), scored(0, rewards=(0.0,)))] * 9, "one member"),
        (fresh, [], "no labelled pairs"),
        (fresh, [pair(0.0, n) for n in range(9)], "agree on every labelled pair"),
    ):
        assert said in monitors(rewards, tokens, pairs, NOTHING, None)["ensemble"].missing


def test_a_reward_model_that_no_longer_knows_what_the_eval_judge_prefers_is_warned_of() -> None:
    def state(agrees: list[float], accuracy: float | None) -> Monitor:
        found = NOTHING.model_copy(update={"agrees": share(agrees), "score": bootstrap_mean([1.0])})
        return monitors([(1.0,)] * 3, [1, 2, 3], [], found, accuracy)["agreement with eval judge"]

    assert state([1.0] * 10 + [0.0] * 30, 0.8).state == "warns"
    assert state([1.0] * 38 + [0.0] * 2, 0.8).state == "fine"
    assert state([1.0] * 5 + [0.0] * 5, 0.7).state == "unclear"
    assert "no better than chance" in state([0.0] * 40, 0.45).missing
    assert "finite score" in monitors([(1.0,)] * 3, [1, 2, 3], [], NOTHING, 0.8)["agreement with eval judge"].missing


def test_ratios_of_two_groups_hold_the_truth_as_often_as_they_say() -> None:
    rng, held = np.random.default_rng(0), 0
    for _ in range(300):
        found = ratio_of_groups(rng.gamma(4, 3, 40), rng.gamma(4, 2, 40), resamples=300)
        held += found.low is not None and found.high is not None and found.low <= 1.5 <= found.high
    assert 0.90 <= held / 300 <= 0.99


def test_a_reward_model_that_is_sure_where_the_eval_judge_is_not_is_warned_of() -> None:
    ids = [f"q{n}" for n in range(30)]

    def certainty(gain: float, likes: float) -> Monitor:
        scores = {
            (policy, i): scored(n, rewards=(gain if policy == "run" else 0.0,), policy=policy)
            for policy in ("run", "before")
            for n, i in enumerate(ids)
        }
        eval_judge = {i: likes if n % 5 else 1 - likes for n, i in enumerate(ids)}
        found = reward("run", "before", ids, scores, eval_judge)
        answers = [(scores["run", i], scores["before", i]) for i in ids]
        return reward_monitors(found, answers, [], None)[-1]

    wrong = certainty(3.0, 0.3)
    assert wrong.value is not None
    assert wrong.state == "warns"
    q = 1 / (1 + math.exp(-3.0))
    p = (0.3 * 24 + 0.7 * 6) / 30
    assert wrong.value.mean == pytest.approx(-(p * math.log(q) + (1 - p) * math.log(1 - q)))
    assert certainty(1.0, 0.8).state == "fine"


QUIET = Reporter(Console(quiet=True))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the worker was asked for, in place of which a row is written."""
    calls: list[dict[str, Any]] = []

    def follow(command: list[str], log: Path, report: Any) -> None:
        spec = json.loads(Path(command[-1]).read_text(encoding="utf-8"))
        calls.append(spec)
        report({"step": 1, "of": 1, "note": "x"})
        write_rows(Path(spec["out"]), [Scored(policy="good", of="answers", prompt_id="p0", tokens=1, logp=-1.0)])

    monkeypatch.setattr(scores, "follow", follow)
    return calls


def planned(folder: Path, **options: Any) -> tuple[EvaluationPlan, Path]:
    out = folder / "out"
    out.mkdir(exist_ok=True)
    answer = Answer(
        policy="good", prompts="held_out", prompt_id="p0", messages=[Message(role="user", content="?")], text="a",
        truncated=False, model="m",
    )  # fmt: skip
    write_rows(out / "answers.jsonl", [answer])
    return plan_evaluation(Options("good", **options), folder / "runs"), out


def test_the_same_answers_are_scored_once_and_others_anew(tmp_path: Path, asked: list[dict[str, Any]]) -> None:
    make_run(tmp_path / "runs", "good")
    evaluating, out = planned(tmp_path)
    rows, missing = scores.score_answers(evaluating, out, QUIET)
    assert ([row.policy for row in rows], missing) == (
        ["good"],
        {"reward": "'good' was not trained against a reward model"},
    )
    assert scores.score_answers(evaluating, out, QUIET)[0] == rows
    assert len(asked) == 1
    assert (asked[0]["temperature"], [p["name"] for p in asked[0]["policies"]], asked[0]["reward"]) == (
        1.0,
        ["good"],
        None,
    )
    with (out / "answers.jsonl").open("a", encoding="utf-8") as file:
        file.write((out / "answers.jsonl").read_text(encoding="utf-8").replace("p0", "p1"))
    scores.score_answers(evaluating, out, QUIET)
    assert len(asked) == 2
    (out / "scores.jsonl").unlink()
    scores.score_answers(evaluating, out, QUIET)
    assert len(asked) == 3


@pytest.mark.parametrize("text", ["", "{", "[]", '{"identity": "0123456789abcdef", "prompts": "held_out"}'])
def test_scores_under_a_key_that_cannot_be_read_are_computed_again(
    tmp_path: Path, asked: list[dict[str, Any]], text: str
) -> None:
    make_run(tmp_path / "runs", "good")
    evaluating, out = planned(tmp_path)
    scores.score_answers(evaluating, out, QUIET)
    key = asked[0]["cache_key"]
    (out / "scoring.json").write_text(text, encoding="utf-8")
    rows, _ = scores.score_answers(evaluating, out, QUIET)
    assert [asked["cache_key"] for asked in asked] == [key, key]
    scored = out.rename(tmp_path / "copied")  # the same content elsewhere
    assert scores.score_answers(evaluating, scored, QUIET)[0] == rows
    assert len(asked) == 2


def test_greedy_answers_have_no_kl_and_without_a_reward_model_nothing_is_started(
    tmp_path: Path, asked: list[dict[str, Any]]
) -> None:
    make_run(tmp_path / "runs", "good")
    rows, missing = scores.score_answers(*planned(tmp_path, settings=["temperature=0"]), QUIET)
    assert (rows, asked) == ([], [])
    assert "greedy" in missing["kl"]


def test_a_reward_model_that_is_gone_is_reported_and_one_that_is_there_is_used(
    tmp_path: Path, asked: list[dict[str, Any]]
) -> None:
    run = make_run(tmp_path / "runs", "good")
    reward = tmp_path / "reward"
    (run.train / "1-dpo/stage.json").write_text(json.dumps({"reward": str(reward)}), encoding="utf-8")
    _, missing = scores.score_answers(*planned(tmp_path), QUIET)
    assert missing["reward"] == f"its reward model is no longer at {reward}"
    reward.mkdir()
    (reward / "reward.json").write_text("{}", encoding="utf-8")
    run.preferences_jsonl.write_text("", encoding="utf-8")
    _, missing = scores.score_answers(*planned(tmp_path), QUIET)
    assert missing == {}
    assert (asked[-1]["reward"], asked[-1]["pairs"]) == (str(reward), str(run.preferences_jsonl))


def test_a_worker_that_fails_leaves_the_rest_of_the_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "runs", "good")

    def follow(*_: Any) -> None:
        raise CaiError("no memory")

    monkeypatch.setattr(scores, "follow", follow)
    rows, missing = scores.score_answers(*planned(tmp_path), QUIET)
    assert (rows, missing["kl"]) == ([], "scoring failed: no memory")


@pytest.mark.slow
def test_a_real_worker_scores_and_reports_what_it_cannot_read(tmp_path: Path, tiny_model: Path) -> None:
    make_run(tmp_path / "runs", "good")  # whose models only pass for some
    rows, missing = scores.score_answers(*planned(tmp_path), QUIET)
    assert rows == []
    assert missing["kl"].startswith("scoring failed: ")
