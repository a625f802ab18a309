"""What limits the results of a run, a training or an evaluation: at most five lines, each with what it is about."""

import json
from pathlib import Path
from typing import Any

import pytest

from cai.data.records import Skipped
from cai.feedback.metrics import EVALUATION_METRICS, WIN_RATE, PromptMeans
from cai.runs.metrics import run_estimates
from cai.runs.trust import run_trust, training_trust
from tests.compare.made import compared, prompt
from tests.report.folders import write_run

ONE_PAIR = {"pairs": 1, "accuracy": None, "ece": None}


@pytest.fixture
def summary(tmp_path: Path) -> dict[str, Any]:
    found = write_run(tmp_path / "run", prompts=9).summary()
    assert found is not None
    return found


def test_a_hold_out_of_one_pair_and_principles_that_were_never_sampled_are_named(summary: dict[str, Any]) -> None:
    training = next(iter(summary["training"].values()))
    summary["training"] = {"1-reward": {**training, "held_out": ONE_PAIR}}
    summary["principles"] |= {"count": 3, "never_sampled": ["rare", "rarer"]}
    lines = dict(run_trust(summary))
    assert len(lines) <= 5
    assert lines["n"].endswith("; 1-reward: 1 held-out pair, too few for an accuracy")
    summary["training"] = {"1-sft": {**training, "examples": 1}, "2-dpo": {**training, "examples": 40}}
    assert dict(run_trust(summary))["n"].endswith("; 1-sft: learned from 1 example")
    assert lines["principles"] == "2 of 3 never sampled: rare, rarer"
    assert lines["truncated"].startswith("33 % of the drafts") and "raise revise.max_tokens" in lines["truncated"]


def test_what_was_not_measured_says_why(summary: dict[str, Any]) -> None:
    summary["metrics"] = dict.fromkeys(summary["metrics"])
    summary["preferences"]["by_source"], summary["evaluation"] = {}, {"compared": 0, "ties": 0, "equal": 0}
    lines = dict(run_trust(summary))
    assert lines["position bias"] == (
        "not measured: no verdict in both orders is on a sampled pair or an answer after training"
    )
    assert (lines["ties"], lines["truncated"]) == ("nothing was compared", "no text was written")


@pytest.mark.parametrize(
    ("stage", "report", "expected"),
    [
        ("reward", ONE_PAIR, ("held out", "1 held-out pair, too few for an accuracy")),
        ("reward", None, ("held out", "no pair (holdout: 0), so its accuracy is unknown")),
        ("dpo", None, ("quality", "whether answers are better, only an evaluation says")),
    ],
)
def test_a_training_says_what_it_learned_from_and_what_it_cannot_tell(
    tmp_path: Path, stage: str, report: dict[str, Any] | None, expected: tuple[str, str]
) -> None:
    files = {"stage": {"settings": {"stage": stage}}, "data": {"examples": 7, "held_out": 1}, "report": report}
    for name, content in files.items():
        if content is not None:
            (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n', encoding="utf-8")
    skipped = [Skipped(prompt_id=f"p{n}", stage=stage, reason="too long") for n in range(2)]
    lines = training_trust(tmp_path, skipped)
    assert lines == [("n", "7 examples learned from, 1 more held out"), expected, ("skipped", "2 × too long")]


def test_a_share_to_hold_out_that_rounds_to_no_pair_is_named(tmp_path: Path) -> None:
    files = {"stage": {"settings": {"stage": "reward", "holdout": 0.1}}, "data": {"examples": 1, "held_out": 0}}
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    expected = "no pair (holdout: 0.1 of 1 pair is none), so its accuracy is unknown"
    assert dict(training_trust(tmp_path, []))["held out"] == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"stage": "ppo", "updates": 1, "rollouts": 2}, "2 sampled answers to 2 of 7 prompts learned from"),
        ({"stage": "ppo", "updates": 50, "rollouts": 32}, "1,600 sampled answers to 7 prompts learned from"),
        ({"stage": "grpo"}, "sampled answers to 7 prompts learned from"),
    ],
)
def test_a_stage_that_samples_learned_from_its_answers(tmp_path: Path, settings: dict[str, Any], expected: str) -> None:
    for name, content in {"stage": {"settings": settings}, "data": {"examples": 7}}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    assert training_trust(tmp_path, [])[0] == ("n", expected)


def test_a_policy_without_change_counts_beside_one_with_a_change() -> None:
    changed = [compared(prompt(f"p{n}"), 0.9, "before") for n in range(4)]
    equal = [row.model_copy(update={"after": "before", "p": 0.5, "verdicts": []}) for row in changed]
    with_change, without = (PromptMeans(EVALUATION_METRICS).add_all(rows) for rows in (changed, equal))
    both = run_estimates([], [], [with_change, without])[WIN_RATE.key]
    assert both is not None and both.mean == 0.75
    assert run_estimates([], [], [without, without])[WIN_RATE.key] is None
